"""What a change says to the unembedding by itself: the logit lens, applied to differences between two runs.

    said = read_changes(lm, pairs, [Site("head_z", l, h) for l in range(30) for h in range(9)])      # per site: (number, pair)

A part's values differ between the base and the source; what it writes differs with them, and the final norm, held at the base's
scale, and the unembedding turn that into a change of the logit difference (nostalgebraist 2020; Elhage et al. 2021). No gradient
and no intervention: what later parts make of the change is not in it, and at tokens before the last it says nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import SubjectError, TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.interventions.execute import run
from mediant.interventions.features import Featurizer
from mediant.interventions.taps import head_weight, split_weight
from mediant.measures.metrics import Outcome
from mediant.search.lens import LAST, readers
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

FINAL = Site("final_resid")
STREAMS = ("resid_post", "attn_out", "mlp_out")


def read_changes(
    subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site], *, features: Featurizer | None = None, batch_size: int = 32
) -> "list[Float[np.ndarray, 'number pair']]":
    """Direct change of the logit difference by every number of every site, or by every feature, at the last token.

    Raises:
        TaskError: an answer has several tokens.
        SubjectError: a site that does not write to the stream, or outputs that are normed before they are added.
    """
    for site in sites:
        _check(subject, site)
    parts: list[list[np.ndarray]] = [[] for _ in sites]
    for i in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[i : i + batch_size])
        if batch.rows_per_pair != 1:
            raise TaskError("the lens compares single tokens, but an answer has several; choose one-token answers")
        with torch.no_grad():
            for part, found in zip(parts, _batch(subject, batch, sites, features), strict=True):
                part.append(found)
    return [np.concatenate(part, axis=1) for part in parts]


def unembedding_differences(subject: Subject, pairs: Sequence[Pair]) -> Float[Tensor, "pair d_model"]:
    """Per pair, the direction of the stream along which the logit difference is read."""
    batch = encode(subject, pairs)
    with torch.no_grad():
        out = run(subject, batch.base, capture=[(FINAL, LAST)])
        return readers(subject, Outcome(batch, out.logits.float()), out.captured[FINAL, LAST].values)


def _check(subject: Subject, site: Site) -> None:
    family = subject.family
    if site.kind not in (*STREAMS, "head_z", "mlp_post"):
        raise SubjectError(
            f"{site} writes nothing to the stream by itself; the lens reads {', '.join(STREAMS)}, head_z, mlp_post"
        )
    if (site.kind == "head_z" and family.attn_post_norm) or (site.kind == "mlp_post" and family.mlp_post_norm):
        raise SubjectError(f"family {family.name} norms what a sublayer writes, so {site} has no share of it that adds up")


def _batch(subject: Subject, batch: PairBatch, sites: Sequence[Site], features: Featurizer | None) -> "list[np.ndarray]":
    whole = list(dict.fromkeys(Site(site.kind, site.layer) for site in sites))
    places = [(site, LAST) for site in [*whole, FINAL]]
    base, source = (run(subject, each, capture=places) for each in (batch.base, batch.source))
    reader = readers(subject, Outcome(batch, base.logits.float()), base.captured[FINAL, LAST].values)
    found = []
    for site in sites:
        place = Site(site.kind, site.layer), LAST
        one, two = (each.captured[place].values.float() for each in (base, source))
        if site.head is not None:
            one, two = one[:, site.head], two[:, site.head]
        along = _along(subject, site, reader)
        if features is None:
            said = (two - one) * along
        else:
            zero = torch.zeros(len(along), features.n_features).to(along)
            # The decoder is affine, so its derivative is the difference it makes.
            with torch.enable_grad():
                zero.requires_grad_()
                (along,) = torch.autograd.grad((features.decode(zero) * along).sum(), zero)
            said = (features.encode(two) - features.encode(one)) * along
        found.append(np.asarray(said.mT.double().cpu().numpy()))
    return found


def _along(subject: Subject, site: Site, reader: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d"]:
    """The reader, pulled back to the site's own numbers."""
    if site.kind in STREAMS:
        return reader
    assert site.layer is not None  # noqa: S101 - checked
    if site.kind == "head_z":
        assert site.head is not None  # noqa: S101 - checked
        return reader @ head_weight(subject, site.layer)[site.head].float().to(reader.device)
    down = subject.family.mlp_of(subject.model, site.layer).get_submodule(subject.family.mlp_down)
    return reader @ split_weight(down, 1)[0].float().to(reader.device)
