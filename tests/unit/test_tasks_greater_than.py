"""Greater-Than: what counts as later, for tokenizers with numbers of two digits and with single digits."""

import pytest
import torch

from builders import subject
from mediant.core import Pair, Prompt
from mediant.core.errors import TaskError, UnknownName
from mediant.measures.metrics import Outcome, metric
from mediant.tasks.encode import encode
from mediant.tasks.greater_than import generate


def digits_only(text: str) -> bool:
    return len(text.strip()) == 1


def pairs_of_digits(text: str) -> bool:
    return len(text.strip()) <= 2


@pytest.mark.parametrize("split", ["main", "heldout"])
def test_answers_lie_on_the_right_side_of_the_start_and_the_counterfactual_starts_at_01(split: str):
    for pair in generate(60, seed=1, split=split, single_token=pairs_of_digits).pairs:
        start = pair.variables["start"]
        assert set(pair.answers) == {f"{y:02d}" for y in range(100) if y > int(start)}
        assert set(pair.counterfactual_answers) == {f"{y:02d}" for y in range(100) if y <= int(start)}
        before, after = (pair.variables["century"] + year for year in (start, "01"))
        assert pair.counterfactual.text == pair.clean.text.replace(before, after, 1)
    for pair in generate(60, seed=1, split=split, single_token=digits_only).pairs:
        tens = int(pair.variables["start"][0])
        assert [int(a) for a in pair.answers] == list(range(tens + 1, 10))
        assert [int(a) for a in pair.counterfactual_answers] == list(range(tens))
        assert pair.answers
        assert pair.counterfactual_answers


def test_spans_are_where_their_words_are():
    for pair in generate(12, seed=3).pairs:
        pieces = {name: pair.clean.text[a:b] for name, (a, b) in pair.clean.spans.items()}
        v = pair.variables
        assert pieces == {"noun": v["noun"], "century": v["century"], "start": v["start"], "end": v["century"]}
        assert pair.clean.text.endswith(v["century"])


def test_a_tokenizer_with_neither_is_refused_and_so_is_an_unknown_mode():
    with pytest.raises(TaskError, match="neither a token for every number"):
        generate(4, single_token=lambda _: False)
    with pytest.raises(UnknownName, match="mode"):
        generate(4, mode="three")


def test_the_metric_is_the_probability_of_all_right_answers_minus_that_of_all_wrong_ones():
    lm = subject()
    both = (" is", " are"), (" key", " keys", " near")
    pair = Pair(
        "x", Prompt("Mary said the"), Prompt("John said the"), " is", " key", answers=both[0], counterfactual_answers=both[1]
    )
    batch = encode(lm, [pair])
    ids = [[lm.continuation_ids("Mary said the", text)[0] for text in side] for side in both]
    logits = torch.randn(1, 1, lm.shape.n_vocab)
    prob = logits[0, 0].softmax(-1)
    outcome = Outcome(batch, logits)
    expected = prob[ids[0]].sum() - prob[ids[1]].sum()
    assert metric("set_prob_diff")(outcome).item() == pytest.approx(expected.item())
    assert bool(outcome.preferred[0]) is bool(expected > 0)
    assert bool(outcome.greedy_right[0]) is (int(prob.argmax()) in ids[0])
    single = encode(lm, [Pair("y", Prompt("Mary said the"), Prompt("John said the"), " is", " key")])
    with pytest.raises(TaskError, match="one answer each"):
        metric("set_prob_diff")(Outcome(single, logits))
    several = Pair(
        "z", Prompt("Mary said"), Prompt("John said"), " the", " key", answers=(" the key",), counterfactual_answers=(" a",)
    )
    with pytest.raises(TaskError, match="must be single tokens, but ' the key' are not"):
        encode(lm, [several])
