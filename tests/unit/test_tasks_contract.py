"""What every task generator promises, whatever it asks."""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.core.pair import Pair, Task
from mediant.tasks import agreement, arithmetic, colours, frame, ioi, pronouns

VARIANTS: dict[str, tuple[Callable[..., Task], dict[str, object]]] = {
    "ioi": (ioi.generate, {}),
    "ioi-abc": (ioi.generate, {"counterfactual": "abc"}),
    "pronouns": (pronouns.generate, {}),
    "pronouns-explicit": (pronouns.generate, {"kind": "explicit"}),
    "agreement": (agreement.generate, {}),
    "arithmetic": (arithmetic.generate, {}),
    "arithmetic-compact": (arithmetic.generate, {"leading_space": False}),
    "arithmetic-bare": (arithmetic.generate, {"shots": 0}),
    "colours": (colours.generate, {}),
}
MODULES = {"ioi": ioi, "pronouns": pronouns, "agreement": agreement, "colours": colours}
TASKS_FOLDER = Path(ioi.__file__).parent
SPLITS = ("main", "heldout")
# Variables that are not words of the sentence's own vocabulary.
CLOSED = {
    "order",
    "op",
    "pronoun",
    "subject_number",
    "distractor_number",
    "asked_position",
    "letter",
    "result",
    "changed",
    "a",
    "b",
}


def tokens(text: str) -> int:
    """A toy tokenizer: a word takes its space along; words of more than six letters fall into two tokens."""
    pieces = re.findall(r" ?[A-Za-z']+| ?[^\sA-Za-z']|\s", text)
    assert "".join(pieces) == text
    return sum(2 if len(piece.strip()) > 6 else 1 for piece in pieces)


def one_token(text: str) -> bool:
    return tokens(text) == 1


def make(variant: str, n: int = 24, **options: object) -> Task:
    generate, fixed = VARIANTS[variant]
    return generate(n, **{**fixed, **options})


def each_pair(variant: str, n: int = 24, **options: object) -> list[Pair]:
    return [pair for split in SPLITS for pair in make(variant, n, split=split, **options).pairs]


every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
def test_ids_number_the_pairs_and_tell_the_splits_apart(variant: str) -> None:
    name = variant.split("-")[0]
    assert [pair.id for pair in make(variant, 12).pairs] == [f"{name}-{i:04d}" for i in range(12)]
    assert [pair.id for pair in make(variant, 2, split="heldout").pairs] == [f"{name}-heldout-0000", f"{name}-heldout-0001"]
    assert make(variant, 2).name == name


@every_variant
def test_the_seed_alone_decides_what_is_made(variant: str) -> None:
    assert make(variant, seed=5) == make(variant, seed=5)
    assert make(variant, seed=5).pairs != make(variant, seed=6).pairs


@every_variant
def test_no_clean_text_occurs_twice(variant: str) -> None:
    texts = [pair.clean.text for pair in make(variant, 90).pairs]
    assert len(set(texts)) == 90


@every_variant
def test_prompts_end_in_a_word_and_answers_go_on_from_there(variant: str) -> None:
    start = "" if variant == "arithmetic-compact" else " "
    for pair in each_pair(variant):
        assert pair.clean.text != pair.counterfactual.text
        assert pair.answer != pair.counterfactual_answer
        for prompt, answer in ((pair.clean, pair.answer), (pair.counterfactual, pair.counterfactual_answer)):
            assert prompt.text == prompt.text.strip()
            assert answer == start + answer.strip()
            assert "  " not in prompt.text
            assert not re.search(r"[{}]", prompt.text)


@every_variant
def test_both_prompts_have_as_many_words_and_as_many_tokens(variant: str) -> None:
    for pair in each_pair(variant, 8, single_token=one_token):
        assert len(pair.clean.text.split()) == len(pair.counterfactual.text.split())
        assert tokens(pair.clean.text) == tokens(pair.counterfactual.text)
        if variant != "arithmetic-compact":
            assert one_token(pair.answer)
            assert one_token(pair.counterfactual_answer)


@pytest.mark.parametrize("variant", ["ioi", "ioi-abc", "pronouns", "pronouns-explicit"])
def test_without_the_tokenizer_some_pairs_differ_in_tokens(variant: str) -> None:
    assert any(tokens(pair.clean.text) != tokens(pair.counterfactual.text) for pair in make(variant, 60).pairs)


@every_variant
def test_spans_cover_whole_words_of_both_prompts(variant: str) -> None:
    for split in SPLITS:
        task = make(variant, 24, split=split)
        for pair in task.pairs:
            for prompt in (pair.clean, pair.counterfactual):
                assert set(task.span_names) <= set(prompt.spans)
                for start, stop in prompt.spans.values():
                    around = prompt.text[start - 1 : start] + prompt.text[stop : stop + 1]
                    unspaced = variant == "arithmetic-compact"
                    assert unspaced or not any(letter.isalnum() for letter in around)
                    assert prompt.text[start:stop] == prompt.text[start:stop].strip()


@every_variant
def test_end_is_the_last_word(variant: str) -> None:
    for pair in each_pair(variant):
        for prompt in (pair.clean, pair.counterfactual):
            start, stop = prompt.spans["end"]
            assert stop == len(prompt.text)
            assert prompt.text[start:] == ("=" if variant == "arithmetic-compact" else prompt.text.split()[-1])


@every_variant
def test_the_two_prompts_differ_only_inside_spans(variant: str) -> None:
    for pair in each_pair(variant):
        assert outside_spans(pair, "clean") == outside_spans(pair, "counterfactual")


def outside_spans(pair: Pair, which: str) -> str:
    prompt = getattr(pair, which)
    kept = list(prompt.text)
    for start, stop in prompt.spans.values():
        kept[start:stop] = "\0" * (stop - start)
    return re.sub("\0+", "_", "".join(kept))


@every_variant
def test_the_splits_share_neither_a_frame_nor_an_entity(variant: str) -> None:
    words: dict[str, set[str]] = {}
    templates: dict[str, set[str]] = {}
    for split in SPLITS:
        pairs = make(variant, 30, split=split).pairs
        templates[split] = {pair.template for pair in pairs}
        words[split] = {value for pair in pairs for key, value in pair.variables.items() if key not in CLOSED | {"changed_to"}}
    assert len(templates["main"]) >= 2
    assert len(templates["heldout"]) >= 2
    assert templates["main"].isdisjoint(templates["heldout"])
    assert words["main"].isdisjoint(words["heldout"])


@pytest.mark.parametrize("name", MODULES)
def test_frames_are_distinct_and_fill_each_slot_once(name: str) -> None:
    frames = [each for split in SPLITS for each in MODULES[name].FRAMES[split]]
    assert len({each.name for each in frames}) == len(frames)
    assert len({each.text for each in frames}) == len(frames)
    for each in frames:
        assert len(set(each.slots)) == len(each.slots)
        assert not each.text.startswith("{"), "a filler at the very start would have no space before it"


@every_variant
def test_the_article_a_stands_before_consonants(variant: str) -> None:
    text = "\n".join(pair.clean.text for pair in each_pair(variant, 30))
    assert re.findall(r"\b[Aa] [aeiou]\w+", text) == []


@every_variant
def test_a_restriction_to_named_templates_holds(variant: str) -> None:
    names = sorted({pair.template for pair in make(variant, 30).pairs})[:2]
    assert {pair.template for pair in make(variant, 12, templates=names).pairs} == set(names)


@every_variant
def test_bad_requests_are_explained(variant: str) -> None:
    with pytest.raises(UnknownName, match="unknown template 'nonsense'"):
        make(variant, templates=["nonsense"])
    with pytest.raises(TaskError, match="at least one template"):
        make(variant, templates=[])
    with pytest.raises(UnknownName, match="unknown split 'train'"):
        inspect.unwrap(VARIANTS[variant][0])(1, split="train")  # no type checks, as for users
    with pytest.raises(TaskError, match="at least 1 pair, got n=0"):
        make(variant, 0)
    with pytest.raises(TaskError, match=r"asked for 10000000 pairs.*only \d+ distinct"):
        make(variant, 10_000_000)


@every_variant
def test_a_tokenizer_that_splits_everything_is_refused(variant: str) -> None:
    with pytest.raises(TaskError, match=r"of several tokens|splits|single tokens"):
        make(variant, 2, single_token=lambda text: False)


@pytest.mark.parametrize("variant", ["pronouns", "agreement", "arithmetic", "arithmetic-compact"])
def test_a_task_can_use_up_its_whole_space_and_not_one_more(variant: str) -> None:
    template = make(variant, 1).pairs[0].template
    with pytest.raises(TaskError, match="distinct ones") as refused:
        make(variant, 10**6, templates=[template])
    found = re.search(r"at most (\d+)", str(refused.value))
    assert found is not None
    most = int(found[1])
    assert len({pair.clean.text for pair in make(variant, most, templates=[template]).pairs}) == most
    with pytest.raises(TaskError, match="distinct ones"):
        make(variant, most + 1, templates=[template])


@pytest.mark.parametrize(
    "name", ["frame", "choosing", "ioi", "pronouns", "agreement", "arithmetic", "colours", "plain_text", "catalogue"]
)
def test_generators_import_only_the_standard_library_and_plain_data(name: str) -> None:
    tree = ast.parse((TASKS_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert plain == set()
    allowed = r"(collections\.abc|dataclasses|functools|importlib|importlib\.resources|itertools|math|random|string|typing)"
    ours = r"mediant\.(core\.(errors|pair)|tasks\.(choosing|frame))"
    assert {module for module in froms if not re.fullmatch(f"{allowed}|{ours}", module)} == set()


def test_shared_spans_are_those_that_every_prompt_has() -> None:
    both = ioi.generate(24, templates=["store", "birthdays"])
    assert both.span_names == ("IO", "S1", "S2", "object", "end")
    assert ioi.generate(4, templates=["store"]).span_names == ("IO", "S1", "S2", "place", "object", "end")
    assert frame.shared_spans(both.pairs, ["place", "end"]) == ("end",)
