"""Values of a site on prompts of the task, as arrays that probes, axes and dictionaries are fitted on."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.execute import run
from mediant.measures.intervals import Array
from mediant.search.directions import per_prompt
from mediant.subject import Subject
from mediant.tasks.encode import encode

BATCH = 32
SIDES = ("clean", "counterfactual")


def values_at(
    subject: Subject, prompts: Sequence[Prompt | str], site: Site, span: str, *, batch_size: int = 32
) -> Float[Tensor, "n d"]:
    """A site's values at the tokens of a span, prompt by prompt."""
    found = []
    for i in range(0, len(prompts), batch_size):
        with torch.no_grad():
            out = run(subject, subject.encode(list(prompts[i : i + batch_size])), capture=[(site, span)])
        found.append(out.captured[site, Span.of(span)].values)
    return torch.cat(found)


def values_of_sides(subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site], span: Span) -> dict[Site, Array]:
    """Values of the clean prompts, then of the counterfactual ones, averaged over the tokens of a span: (2 x pair, d) per site.

    Of a counterfactual, a span is the tokens at the same places as the clean prompt's.
    """
    parts: dict[Site, tuple[list[Array], list[Array]]] = {site: ([], []) for site in sites}
    for i in range(0, len(pairs), BATCH):
        batch = encode(subject, pairs[i : i + BATCH])
        for side, prompts in enumerate((batch.base, batch.source)):
            with torch.no_grad():
                found = run(subject, prompts, capture=[(site, span) for site in sites]).captured
            for site in sites:
                parts[site][side].append(per_prompt(found[site, span], prompts.n_rows, span)[:: batch.rows_per_pair])
    return {site: np.concatenate([*clean, *other]) for site, (clean, other) in parts.items()}
