"""The command line called in this process, on a tiny model that can do its task."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import trained
from mediant.cli import main

# Batches smaller than the data, so that every stage has more than one work item.
SETTINGS: dict[str, object] = {
    "n": 20,
    "n_discovery": 12,
    "n_map": 4,
    "top_k": 2,
    "random_draws": 3,
    "n_texts": 8,
    "batch_size": 8,
    "device": "cpu",
}


@dataclass(frozen=True)
class Call:
    """What one call of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error on one line, without the frames that the option parser draws."""
        return " ".join(re.sub("[─│╭╮╰╯]", " ", self.err).split())

    def refuses(self, *words: str) -> None:
        """Assert that this is one message for the user, with these words, and exit code 2."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err
        assert len(re.findall(r"^error:|─ Error ─", self.err, flags=re.MULTILINE)) == 1
        assert [word for word in words if word not in self.message] == [], self.message


Mediant = Callable[..., Call]
Arguments = Callable[..., list[str]]


@pytest.fixture
def mediant(capsys: pytest.CaptureFixture[str]) -> Mediant:
    """`mediant(*arguments)` as if typed, in this process."""

    def call(*arguments: object) -> Call:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # the parser of options ends the process itself
            code = stopped.code if isinstance(stopped.code, int) else 1
        return Call(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def agreement(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that has learned subject-verb agreement."""
    return trained.train(tmp_path_factory.mktemp("models") / "agreement")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pairs file of 48 lines, three templates."""
    return trained.write_pairs(tmp_path_factory.mktemp("data") / "agreement.jsonl")


@pytest.fixture(scope="session")
def arguments(agreement: Path, pairs: Path) -> Arguments:
    """`arguments(out, top_k=3)`: the command for a run on the tiny model, with some settings changed."""

    def command(out: Path | None = None, *more: object, **changed: object) -> list[str]:
        settings = {"model": agreement, "task": pairs, **SETTINGS, **changed}
        options = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        place = [] if out is None else ["--out", str(out)]
        return ["run", "activation-patching", *options, *place, *map(str, more)]

    return command


@pytest.fixture(scope="session")
def finished(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(arguments(folder)) == 0
    return folder
