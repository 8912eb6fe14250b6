"""Metrics: closed forms on logits made up for the purpose, and the user's own functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import WORDS, pairs, subject
from mediant.core import Site
from mediant.core.errors import TaskError, UnknownName
from mediant.measures import metrics
from mediant.measures.metrics import METRICS, Outcome, metric
from mediant.search import patch
from mediant.tasks.encode import PairBatch, encode

Array = np.ndarray
LONGER = [replace(pairs()[0], answer=" Mary and", counterfactual_answer=" Tom"), replace(pairs()[1], answer=" key")]


def made_up(encoded: PairBatch, seed: int = 0) -> Array:
    """Logits (row, kept, vocabulary) that no model gave."""
    return np.random.default_rng(seed).normal(scale=2, size=(encoded.base.n_rows, encoded.keep, len(WORDS))).astype(np.float32)


def single() -> tuple[PairBatch, Array]:
    encoded = encode(subject(), pairs())
    return encoded, made_up(encoded)


def several() -> tuple[PairBatch, Array]:
    encoded = encode(subject(), LONGER)
    return encoded, made_up(encoded)


def outcome(made: tuple[PairBatch, Array]) -> Outcome:
    return Outcome(made[0], torch.from_numpy(made[1]))


def word(text: str) -> int:
    return WORDS.index(text.strip())


def log_softmax(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def whole(logits: Array, answer: str) -> float:
    """Log-probability of an answer whose tokens the last rows predict."""
    tokens = [word(w) for w in answer.split()]
    return sum(log_softmax(row)[token] for row, token in zip(logits[-len(tokens) :], tokens, strict=True))


def expected_logprobs(made: tuple[PairBatch, Array]) -> tuple[Array, Array]:
    encoded, logits = made
    k = encoded.rows_per_pair
    rows = [(logits[k * i], logits[k * i + k - 1], pair) for i, pair in enumerate(encoded.pairs)]
    ours = [whole(mine, pair.answer) for mine, _, pair in rows]
    return np.array(ours), np.array([whole(other, pair.counterfactual_answer) for _, other, pair in rows])


CLOSED_FORMS = {
    "logprob_diff": lambda a, b: a - b,
    "prob_diff": lambda a, b: np.exp(a) - np.exp(b),
    "answer_logprob": lambda a, b: a,
    "answer_prob": lambda a, b: np.exp(a),
}


@pytest.mark.parametrize("made", [single, several])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_metric_is_its_closed_form(name, made):
    expected = CLOSED_FORMS[name](*expected_logprobs(made()))
    found = metric(name)(outcome(made()))
    assert found.shape == expected.shape
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_the_logit_difference_is_taken_at_the_prompts_last_token():
    encoded, logits = single()
    expected = [logits[i, 0, word(p.answer)] - logits[i, 0, word(p.counterfactual_answer)] for i, p in enumerate(encoded.pairs)]
    assert metric("logit_diff")(outcome((encoded, logits))).tolist() == pytest.approx(expected, abs=1e-6)


def test_for_single_tokens_logits_and_log_probabilities_differ_alike():
    made = single()
    assert torch.allclose(metric("logit_diff")(outcome(made)), metric("logprob_diff")(outcome(made)), atol=1e-5)


def test_the_logit_difference_of_longer_answers_is_refused_with_what_to_use():
    with pytest.raises(TaskError, match="an answer has several; use the metric logprob_diff"):
        metric("logit_diff")(outcome(several()))


def test_an_outcome_offers_first_tokens_and_their_logits():
    for made in (single(), several()):
        encoded, logits = made
        found, k = outcome(made), encoded.rows_per_pair
        firsts = [word(p.answer.split()[0]) for p in encoded.pairs]
        others = [word(p.counterfactual_answer.split()[0]) for p in encoded.pairs]
        # The first row of a pair holds its answer but for the last token, so that many columns follow the prompt's last.
        last = [logits[k * i, -len(p.answer.split()) if k == 2 else -1] for i, p in enumerate(encoded.pairs)]
        assert found.single_token is (k == 1)
        assert found.answer.tolist() == firsts
        assert found.counterfactual_answer.tolist() == others
        assert np.array_equal(found.logits.numpy(), np.stack(last))
        assert found.answer_logit.tolist() == [float(row[t]) for row, t in zip(last, firsts, strict=True)]
        assert found.counterfactual_logit.tolist() == [float(row[t]) for row, t in zip(last, others, strict=True)]


@pytest.mark.parametrize("made", [single, several])
def test_the_likelier_answer_is_preferred(made):
    ours, others = expected_logprobs(made())
    assert outcome(made()).preferred.tolist() == (ours > others).tolist()


def test_an_answer_as_likely_as_the_other_is_not_preferred():
    encoded, logits = single()
    assert outcome((encoded, np.zeros_like(logits))).preferred.tolist() == [False] * 4


def test_greedy_decoding_takes_the_whole_answer_of_the_pairs_first_row():
    encoded, logits = several()
    logits[:] = 0
    logits[0, 0, word("Mary")] = logits[0, 1, word("and")] = logits[2, 1, word("key")] = 9
    assert outcome((encoded, logits)).greedy_right.tolist() == [True, True]
    logits[0, 1, word("the")] = 10
    assert outcome((encoded, logits)).greedy_right.tolist() == [False, True]


@pytest.mark.parametrize("name", [n for n in METRICS if n != "set_prob_diff"])
def test_half_precision_logits_lose_no_more_than_their_own_rounding(name):
    encoded, logits = single()
    half = torch.from_numpy(logits).bfloat16()
    assert torch.allclose(metric(name)(Outcome(encoded, half)).float(), metric(name)(Outcome(encoded, half.float())), atol=0.04)


def test_each_metric_is_found_by_its_own_name():
    assert list(METRICS) == ["logit_diff", "logprob_diff", "prob_diff", "answer_logprob", "answer_prob", "set_prob_diff"]
    assert all(metric(name) is getattr(metrics, name) for name in METRICS)


def test_an_unknown_metric_is_named_with_its_neighbours_and_how_to_give_ones_own():
    with pytest.raises(UnknownName, match=r"unknown metric 'logit_dif'; did you mean 'logit_diff' .* as file\.py:function"):
        metric("logit_dif")


MINE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Settings:
    weight: float = 2.0

NUMBER = 3

def margin(outcome):
    return Settings().weight * (outcome.logits.max(-1).values - outcome.answer_logit)

def one_number(outcome):
    return outcome.answer_logit.mean()

def every_token(outcome):
    return outcome.logits

def one_too_few(outcome):
    return outcome.answer_logit[1:]

def plain_list(outcome):
    return outcome.answer_logit.tolist()

def broken(outcome):
    return outcome.answr_logit
"""


@pytest.fixture
def mine(tmp_path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return str(path)


def margin_by_hand() -> Array:
    encoded, logits = single()
    return np.array([2 * (logits[i, 0].max() - logits[i, 0, word(p.answer)]) for i, p in enumerate(encoded.pairs)])


def test_a_users_function_comes_from_a_file(mine):
    assert np.allclose(metric(f"{mine}:margin")(outcome(single())).numpy(), margin_by_hand(), atol=1e-5)


def test_a_users_function_comes_from_a_module(mine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mediant_metric_of_a_user.py").write_text(MINE, encoding="utf-8")
    assert np.allclose(metric("mediant_metric_of_a_user:margin")(outcome(single())).numpy(), margin_by_hand(), atol=1e-5)


def test_a_function_itself_is_a_metric():
    found = metric(lambda o: 2 * o.answer_logit)(outcome(single()))
    assert torch.equal(found, 2 * outcome(single()).answer_logit)
    assert metric(METRICS["prob_diff"]) is METRICS["prob_diff"]


def test_a_patch_is_measured_with_the_users_function(mine):
    lm = subject()
    effect = patch(lm, pairs(), at=Site("resid_post", 2), by=f"{mine}:margin")
    assert np.allclose(effect.before, patch(lm, pairs(), at=Site("mlp_out", 0), by=metric(f"{mine}:margin")).before)
    assert np.allclose(effect.values, effect.total, atol=1e-4)
    assert np.abs(effect.values).max() > 0.1


WRONG_SHAPES = {"one_number": r"\(\)", "every_token": r"\(4, 28\)", "one_too_few": r"\(3,\)", "plain_list": "list"}


@pytest.mark.parametrize(("function", "got"), WRONG_SHAPES.items())
def test_a_users_function_that_gives_no_number_per_pair_is_refused(mine, function, got):
    with pytest.raises(TaskError, match=rf"mine\.py:{function} must return one number per pair, shape \(4,\); it returned {got}"):
        metric(f"{mine}:{function}")(outcome(single()))


def test_a_users_function_that_fails_is_named_with_how(mine):
    with pytest.raises(TaskError, match=r"metric .*mine\.py:broken failed: AttributeError: .*answr_logit"):
        metric(f"{mine}:broken")(outcome(single()))


def test_a_function_given_as_such_is_checked_too():
    def one_number(o: Outcome) -> torch.Tensor:
        return o.answer_logit.mean()

    with pytest.raises(TaskError, match=r"metric one_number must return one number per pair, shape \(4,\); it returned \(\)"):
        patch(subject(), pairs(), at=Site("resid_post", 2), by=one_number)


def test_a_missing_function_is_named_with_its_neighbours(mine):
    with pytest.raises(UnknownName, match=r"unknown function 'margn'; did you mean 'margin'\? in .*mine\.py"):
        metric(f"{mine}:margn")
    with pytest.raises(UnknownName, match="unknown function 'NUMBER'") as caught:
        metric(f"{mine}:NUMBER")
    assert "'NUMBER'" not in str(caught.value).partition(";")[2]


@pytest.mark.parametrize("source", ["def margin(:\n", "raise RuntimeError('no')\n", "import no_such_module_at_all\n"])
def test_a_file_that_does_not_run_is_refused_with_why(tmp_path, source):
    (tmp_path / "bad.py").write_text(source, encoding="utf-8")
    with pytest.raises(TaskError, match=r"metric module '.*bad\.py' could not be imported: \S"):
        metric(f"{tmp_path / 'bad.py'}:margin")


def test_a_file_or_module_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "folder.py").mkdir()
    for module in (tmp_path / "none.py", tmp_path / "folder.py"):
        with pytest.raises(TaskError, match=r"could not be imported: .* is not a file"):
            metric(f"{module}:margin")
    for module in ("no_such_module_at_all", ""):
        with pytest.raises(TaskError, match="could not be imported"):
            metric(f"{module}:margin")
