"""Interchange accuracy by place: at which layer and token does a whole site hold what two prompts differ in?

    turned = interchange_map(lm, pairs, [Site("resid_post", la) for la in range(30)], ["S2", "last"])
    turned.mean(-1)                                # (site, span): share of pairs whose answer becomes the counterfactual's

An interchange intervention (Geiger et al. 2021, arXiv 2106.02997) of a causal model with one variable, the one in which the
prompts of a pair differ: with the site's values of the counterfactual prompt, the answer has to be the counterfactual one. Beside
it belongs the same map of the same architecture with random weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.measures.metrics import Outcome
from mediant.search.patching import Patcher
from mediant.subject import Subject
from mediant.tasks.encode import encode


def interchange_map(
    subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site | str], spans: Sequence[Span | str], *, batch_size: int = 16
) -> Bool[np.ndarray, "site span pair"]:
    """Per site, span and pair, whether the counterfactual's answer is preferred under the exchange.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
        UnknownName, OutOfRange, SubjectError: a site or span that does not exist here.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to exchange")
    found = []
    for i in range(0, len(pairs), batch_size):
        patcher = Patcher(subject, encode(subject, pairs[i : i + batch_size]), by=_kept)
        found.append(patcher.before + patcher.grid(sites, spans) < 0.5)
    return np.concatenate(found, axis=-1)


def _kept(outcome: Outcome) -> Tensor:
    """1 where the clean prompt's answer is preferred, else 0."""
    return outcome.preferred.to(torch.float32)
