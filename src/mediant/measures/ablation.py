"""What stands in for an edge that is cut: the counterfactual run, the mean over alike prompts, or nothing.

    other = ablated_run(lm, batch, tokens, Ablation("mean", more_pairs))

The mean is taken node by node and token by token over up to 16 prompts of the same template, with the same spans at the same
places and, where there are such, other answers (Haklay et al. 2025, section 2; Wang et al. 2023 average a whole dataset).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch

from mediant.core.errors import TaskError, unknown
from mediant.core.pair import Pair
from mediant.interventions.as_if import as_if
from mediant.interventions.nodes import Nodes, TokenOrder, observe
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

Kind = Literal["counterfactual", "mean", "zero"]
KINDS = ("counterfactual", "mean", "zero")
MOST = 16


@dataclass(frozen=True)
class Ablation:
    """What cut edges carry.

    Attributes:
        references: pairs whose clean prompts are averaged over, for `mean`.
        most: at most so many of them for one prompt.
    """

    kind: str = "counterfactual"
    references: tuple[Pair, ...] = ()
    most: int = MOST
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("ablation", self.kind, KINDS)
        if (self.kind == "mean") != bool(self.references):
            raise TaskError("mean ablation needs references, pairs whose prompts are averaged over; the others take none")

    @property
    def pairwise(self) -> bool:
        """Whether the run equals the clean one before the first token in which the two prompts differ."""
        return self.kind == "counterfactual"


COUNTERFACTUAL = Ablation()


def ablated_run(
    subject: Subject, pairs: PairBatch, tokens: TokenOrder, ablation: Ablation, *, with_attention: bool = False
) -> Nodes:
    """The run that every cut edge carries.

    Raises:
        TaskError: a pair without alike prompts among the references.
    """
    if ablation.kind == "counterfactual":
        return observe(subject, pairs.source, tokens, keep=pairs.keep, with_attention=with_attention)
    clean = observe(subject, pairs.base, tokens, keep=pairs.keep)
    if ablation.kind == "zero":
        outputs = torch.zeros_like(clean.outputs)
    else:
        rounds = alike(subject, pairs.pairs, ablation)
        outputs = torch.zeros_like(clean.outputs)
        for chosen in rounds:
            others = encode(subject, chosen)
            if not torch.equal(others.base.mask, pairs.base.mask):
                raise TaskError(
                    "mean ablation needs answers of one length; these pairs' answers take different numbers of tokens"
                )
            outputs += observe(subject, others.base, tokens).outputs / len(rounds)
    return as_if(subject, pairs.base, tokens, clean, outputs, keep=pairs.keep, with_attention=with_attention)


def alike(subject: Subject, pairs: Sequence[Pair], ablation: Ablation) -> list[list[Pair]]:
    """Rounds of one reference per pair: same template, same places of the spans, other words, other answers where possible.

    Raises:
        TaskError: naming a pair that has none.
    """
    kinds: dict[object, list[Pair]] = {}
    for pair in ablation.references:
        kinds.setdefault(_kind(subject, pair), []).append(pair)
    random, chosen = Random(ablation.seed), list[list[Pair]]()
    for pair in pairs:
        same = [other for other in kinds.get(_kind(subject, pair), []) if other.clean.text != pair.clean.text]
        answers = {pair.answer, pair.counterfactual_answer}
        # Where all pairs share their answers, as singular and plural do, the mean is over both.
        fit = [other for other in same if other.answer not in answers] or same
        if not fit:
            raise TaskError(
                f"pair {pair.id}: none of the {len(ablation.references)} references has its template and its length with other "
                "words; give more references, or use counterfactual ablation"
            )
        chosen.append(random.sample(fit, min(ablation.most, len(fit))))
    n = min(len(found) for found in chosen)
    return [[found[i] for found in chosen] for i in range(n)]


def _kind(subject: Subject, pair: Pair) -> object:
    tokens = subject.tokenize(pair.clean)
    return pair.template, len(tokens.ids), tuple(sorted(tokens.spans.items()))
