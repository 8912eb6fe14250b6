"""What is measured of a model's answer: one number per pair, by name or by the user's own function.

>>> sorted(METRICS)
['answer_logprob', 'answer_prob', 'logit_diff', 'logprob_diff', 'prob_diff', 'set_prob_diff']

A user's function takes an `Outcome` and returns one number per pair:

    def margin(outcome):                       # my_metrics.py
        return outcome.logits.max(-1).values - outcome.answer_logit

It is given on the command line as `my_metrics.py:margin` or `package.module:margin`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mediant.core.errors import TaskError, unknown
from mediant.tasks.encode import PairBatch


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a forward over a batch of pairs gave; everything is computed when first asked for.

    Attributes:
        pairs: the batch that was run.
        kept: logits of the last columns, (row, kept, vocab).
    """

    pairs: PairBatch
    kept: Float[Tensor, "row kept vocab"]

    @property
    def single_token(self) -> bool:
        """Whether all answers are one token."""
        return self.pairs.rows_per_pair == 1

    @cached_property
    def logits(self) -> Float[Tensor, "pair vocab"]:
        """Logits at each prompt's last token."""
        return self.pairs.prompt_logits(self.kept)

    @cached_property
    def answer(self) -> Int[Tensor, " pair"]:
        """First token of each answer."""
        return torch.tensor([ids[0] for ids in self.pairs.answers], device=self.kept.device)

    @cached_property
    def counterfactual_answer(self) -> Int[Tensor, " pair"]:
        """First token of each counterfactual answer."""
        return torch.tensor([ids[0] for ids in self.pairs.counterfactual_answers], device=self.kept.device)

    @property
    def answer_logit(self) -> Float[Tensor, " pair"]:
        """Logit of the answer's first token."""
        return self.logits.gather(-1, self.answer[:, None])[:, 0]

    @property
    def counterfactual_logit(self) -> Float[Tensor, " pair"]:
        """Logit of the counterfactual answer's first token."""
        return self.logits.gather(-1, self.counterfactual_answer[:, None])[:, 0]

    @cached_property
    def _log_likelihoods(self) -> tuple[Tensor, Tensor]:
        return self.pairs.log_likelihoods(self.kept)

    @property
    def answer_logprob(self) -> Float[Tensor, " pair"]:
        """Log-probability of the whole answer (nats)."""
        return self._log_likelihoods[0]

    @property
    def counterfactual_logprob(self) -> Float[Tensor, " pair"]:
        """Log-probability of the whole counterfactual answer (nats)."""
        return self._log_likelihoods[1]

    @property
    def preferred(self) -> Bool[Tensor, " pair"]:
        """Whether the answer (or all right answers together) is likelier than the counterfactual one (or all wrong ones)."""
        if self.pairs.answer_sets:
            return set_prob_diff(self) > 0
        return self.answer_logprob > self.counterfactual_logprob

    @cached_property
    def greedy_right(self) -> Bool[Tensor, " pair"]:
        """Whether greedy decoding gives the whole answer, or one of the right answers."""
        if self.pairs.answer_sets:
            best = self.logits.argmax(-1).tolist()
            return torch.tensor([token in right for token, (right, _) in zip(best, self.pairs.answer_sets, strict=True)])
        return self.pairs.greedy_right(self.kept)


Metric = Callable[[Outcome], Float[Tensor, " pair"]]


def logit_diff(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Logit of the answer minus logit of the counterfactual answer (single-token answers).

    Raises:
        TaskError: an answer has several tokens.
    """
    if not outcome.single_token:
        raise TaskError("logit_diff compares single tokens, but an answer has several; use the metric logprob_diff")
    return outcome.answer_logit - outcome.counterfactual_logit


def logprob_diff(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Log-probability of the whole answer minus that of the whole counterfactual answer (nats)."""
    return outcome.answer_logprob - outcome.counterfactual_logprob


def prob_diff(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Probability of the answer minus that of the counterfactual answer."""
    return outcome.answer_logprob.exp() - outcome.counterfactual_logprob.exp()


def answer_logprob(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Log-probability of the whole answer (nats)."""
    return outcome.answer_logprob


def answer_prob(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Probability of the whole answer."""
    return outcome.answer_logprob.exp()


def set_prob_diff(outcome: Outcome) -> Float[Tensor, " pair"]:
    """Probability of all right answers minus that of all wrong ones, for pairs with sets of answers.

    Raises:
        TaskError: pairs with one answer each.
    """
    sets = outcome.pairs.answer_sets
    if not sets:
        raise TaskError("set_prob_diff compares sets of answers, but these pairs have one answer each; use prob_diff")
    prob = outcome.logits.float().softmax(-1)
    found = [p[list(right)].sum() - p[list(wrong)].sum() for p, (right, wrong) in zip(prob, sets, strict=True)]
    return torch.stack(found)


METRICS: dict[str, Metric] = {
    f.__name__: f for f in (logit_diff, logprob_diff, prob_diff, answer_logprob, answer_prob, set_prob_diff)
}


def metric(name: str | Metric) -> Metric:
    """A metric by name, or the user's own as `file.py:function` or `module:function`.

    Raises:
        UnknownName: no such metric or function.
        TaskError: the module or file cannot be imported, or the function does not return one number per pair.
    """
    if callable(name):
        return name if name in METRICS.values() else _checked(name, getattr(name, "__name__", "function"))
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.rpartition(":")
    if not colon:
        raise unknown("metric", name, METRICS, note="Your own is given as file.py:function.")
    found = getattr(_import(module), function, None)
    if not callable(found):
        raise unknown("function", function, [k for k, v in vars(_import(module)).items() if callable(v)], note=f"in {module}")
    return _checked(found, name)


def _import(module: str) -> object:
    try:
        if module.endswith(".py"):
            path = Path(module)
            spec = importlib.util.spec_from_file_location(f"_metric_{path.stem}", path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ImportError(f"{path} is not a file")
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = loaded
            spec.loader.exec_module(loaded)
            return loaded
        return importlib.import_module(module)
    except Exception as error:
        raise TaskError(f"metric module {module!r} could not be imported: {error}") from error


def _checked(function: Metric, name: str) -> Metric:
    def call(outcome: Outcome) -> Tensor:
        try:
            values = function(outcome)
        except Exception as error:
            raise TaskError(f"metric {name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(values, Tensor) or values.shape != outcome.answer.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(
                f"metric {name} must return one number per pair, shape {tuple(outcome.answer.shape)}; it returned {got}"
            )
        return values

    return call
