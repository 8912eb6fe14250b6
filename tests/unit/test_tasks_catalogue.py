"""Tasks by name."""

import importlib
import inspect
import subprocess
import sys

import pytest

from mediant.core.errors import UnknownName
from mediant.tasks.catalogue import DESCRIPTIONS, TASKS, generator


def test_the_tasks_are_listed_with_descriptions() -> None:
    assert list(TASKS) == [
        "ioi", "pronouns", "agreement", "arithmetic", "colours", "greater-than", "docstring", "induction", "panels",
    ]  # fmt: skip
    assert list(DESCRIPTIONS) == list(TASKS)
    assert all(DESCRIPTIONS.values())


@pytest.mark.parametrize("name", TASKS)
def test_a_generator_makes_the_task_of_its_name(name: str) -> None:
    task = generator(name)(3, seed=2, single_token=lambda text: True, split="heldout")
    assert task.name == name
    assert len(task.pairs) == 3
    assert generator(name) is importlib.import_module(TASKS[name]).generate


@pytest.mark.parametrize("name", TASKS)
def test_generators_share_their_first_parameters(name: str) -> None:
    parameters = inspect.signature(generator(name)).parameters
    assert list(parameters)[:4] == ["n", "seed", "single_token", "split"]
    assert [parameters[each].default for each in ("seed", "single_token", "split")] == [0, None, "main"]


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown task 'pronoun'; did you mean 'pronouns'"):
        generator("pronoun")


def test_generators_are_imported_only_when_asked_for() -> None:
    code = (
        "import sys; import mediant.tasks.catalogue as c; before = set(sys.modules); c.generator('colours'); "
        "print(*sorted(n for n in set(sys.modules) - before if n.startswith('mediant.tasks')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mediant.tasks.colours", "mediant.tasks.frame"]
