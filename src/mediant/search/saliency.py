"""Which tokens of a prompt matter to the answer, and a schema made of that alone.

    marks = salient(lm, pairs)                    # pair id -> one flag per token, for a schema written by a language model
    table = segment(lm, pairs)                    # prompts that line up: tokens that often matter get spans of their own

Saliency of a token is the length of its embedding times the metric's gradient, entry by entry; after a softmax over the prompt's
tokens, those above an equal share are marked (Haklay et al. 2025, equation 10). It is a first-order estimate like any gradient.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mediant.core.errors import OutOfRange, SpanError
from mediant.core.pair import Pair
from mediant.interventions.nodes import TokenOrder
from mediant.interventions.port_gradients import differentiate
from mediant.measures.intervals import Array
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Subject
from mediant.tasks.encode import encode
from mediant.tasks.schema import SpanTable


def saliency(
    subject: Subject, pairs: Sequence[Pair], *, by: str | Metric = "logit_diff", batch_size: int = 16
) -> dict[str, Array]:
    """Saliency of every token of every clean prompt: pair id -> one number per token, before the softmax."""
    found: dict[str, Array] = {}
    for start in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[start : start + batch_size])
        tokens = TokenOrder.of(batch.base)

        def measure(logits: Tensor, batch=batch) -> Tensor:  # type: ignore[no-untyped-def]
            return metric(by)(Outcome(batch, logits)).sum()

        clean = differentiate(subject, batch.base, tokens, measure, keep=batch.keep)
        size = (clean.nodes.outputs[0] * clean.embedding).float().norm(dim=-1).cpu()
        table = torch.zeros(batch.base.ids.shape).index_put((tokens.rows.cpu(), tokens.cols.cpu()), size)
        for i, pair in enumerate(batch.pairs):
            rows = slice(i * batch.rows_per_pair, (i + 1) * batch.rows_per_pair)
            first, stop = batch.base.start[rows.start], batch.base.stop[rows.start]
            found[pair.id] = table[rows, first:stop].sum(0).double().numpy()
    return found


def salient(subject: Subject, pairs: Sequence[Pair], *, by: str | Metric = "logit_diff") -> dict[str, tuple[bool, ...]]:
    """Which tokens of each clean prompt are above an equal share of its saliency."""
    return {name: _marked(values) for name, values in saliency(subject, pairs, by=by).items()}


def segment(subject: Subject, pairs: Sequence[Pair], *, by: str | Metric = "logit_diff", share: float = 0.5) -> SpanTable:
    """A schema without any rule: tokens marked in more than `share` of the prompts stand alone, runs of others together.

    The first and the last token always stand alone.

    Raises:
        SpanError: prompts of unequal length, whose tokens cannot be matched.
        OutOfRange: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise OutOfRange(f"share must lie between 0 and 1, got {share}")
    marks = salient(subject, pairs, by=by)
    lengths = {len(row) for row in marks.values()}
    if len(lengths) != 1:
        raise SpanError(
            f"saliency matches tokens by place, so prompts need one length; these have {', '.join(map(str, sorted(lengths)))}. "
            "Use prompts of one template, or a schema from named spans"
        )
    often = np.mean([list(row) for row in marks.values()], axis=0) > share
    often[[0, -1]] = True
    numbers, names = [0], ["token 0"]
    for place in range(1, len(often)):
        if often[place] or often[place - 1]:
            numbers.append(numbers[-1] + 1)
            names.append(f"token {place}" if often[place] else f"tokens {place}..")
        else:
            numbers.append(numbers[-1])
    return SpanTable(tuple(names), dict.fromkeys(marks, tuple(numbers)))


def _marked(values: Array) -> tuple[bool, ...]:
    weights = np.exp(values - values.max())
    return tuple((weights / weights.sum() > 1 / len(values)).tolist())
