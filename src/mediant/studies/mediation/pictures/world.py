"""Image generators in the matrix.

The site whose coordinates, axes, features and subspaces are searched is the first block after which the picture's stream carries
half of the way to the other picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mediant.core.errors import SubjectError, TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.measures.behaviour import refuse_unless_done
from mediant.report.page import Framed, Grid, Section
from mediant.runs.folder import Json
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.ground import fitted_axes, given_dictionary
from mediant.studies.mediation.measures import Tried, leading
from mediant.studies.mediation.mediators import Features, Neurons, Places
from mediant.studies.mediation.method import Entry, compared
from mediant.studies.mediation.pictures import task
from mediant.studies.mediation.pictures.ready import Pictures
from mediant.studies.mediation.pictures.searches import ALL, SUBSPACES, PictureGround, parts, searches_of, stream
from mediant.studies.mediation.pictures.task import PicturePair
from mediant.studies.mediation.searches import Search
from mediant.studies.mediation.subspaces import SubspaceSearch
from mediant.subject.generator import ImageGenerator

PICTURE, HALF, SHOWN = Span("picture"), 0.5, 4
DEFINITIONS = {
    "faithfulness": "Share of the way to the picture with the other reference that comes with the values {what} have there, on "
    "pairs no search saw (1 = all of it).",
    "generality": "The same on combinations of thing and property that training held out.",
    "leak": "The same towards a picture with the same reference and another instruction; a mediator of what is taken from the "
    "reference alone leaks nothing.",
    "disturbance": "How far unrelated pictures move in any direction when {what} get another's values, as a share of the squared "
    "distance to the other.",
}
LIMITS = (
    "A picture's way is measured in its latents, not in what is seen.",
    "Edges are left out: what one block writes for the next is not split into edges where text and picture attend together.",
    "Beside DAS stand as many random dimensions, not the same search on a subject with random weights.",
    "In double blocks, text and picture have MLPs of their own: one number then stands for a neuron of either.",
)


@dataclass(frozen=True)
class PictureWorld:
    """See `World`."""

    definitions: Mapping[str, str] = field(default_factory=lambda: DEFINITIONS)
    outcome: str = "the picture with the other reference"
    limits: Sequence[str] = LIMITS

    def load(self, config: Config, subject: ImageGenerator) -> Data[PicturePair]:
        """Draw or read pairs of requests.

        Raises:
            UnknownName: no such property.
            OutOfRange: a site this subject does not have.
            TaskError: too few pairs, or nothing but edges asked for.
        """
        if config.kinds == ("edge",):
            raise TaskError("an image generator has no edges to search: name other rows with --kinds")
        if config.site is not None:
            subject.validate(config.site)
        return task.load(config)

    def ready(self, config: Config, subject: ImageGenerator, pairs: Sequence[PicturePair], *, by: str) -> Pictures:  # noqa: ARG002
        """Make both pictures of every pair."""
        return Pictures(subject, pairs, config.steps)

    def begin(self, config: Config, subject: ImageGenerator, data: Data[PicturePair]) -> Site:
        """Refuse a subject that does not take the property from its reference; choose the site.

        Raises:
            TaskNotDone: pictures are no nearer to what was asked for than to what the counterfactual asks for.
        """
        one = [data.discovery[i : i + config.batch_size] for i in range(0, len(data.discovery), config.batch_size)]
        ready = [Pictures(subject, some, config.steps) for some in one]
        preferred, total = (np.concatenate(each) for each in ([r.preferred() for r in ready], [r.patcher.total for r in ready]))
        refuse_unless_done(preferred, total, task=data.name, subject=subject.name)
        if config.site:
            return Site.parse(config.site)
        sites = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)]
        effects = np.concatenate([each.patcher.grid(sites, [PICTURE])[:, 0] for each in ready], axis=1)
        share = effects.mean(1) / total.mean()
        return next((site for site, value in zip(sites, share, strict=True) if value >= HALF), sites[-1])

    def ground(self, config: Config, subject: ImageGenerator, data: Data[PicturePair], site: Site) -> PictureGround:
        """All kinds of units; axes are fitted and a dictionary is learned where rows ask for them."""
        shape = subject.shape
        first = next(parts(PictureGround(config, subject, data, site, PICTURE, {}, 1), data.discovery[:1]))
        one = first.patcher.base.n_cols * shape.n_layers * config.steps
        ground = PictureGround(config, subject, data, site, PICTURE, {}, one)
        for kind in config.kinds:
            if kind in ("layer", "sublayer", "head"):
                ground.kinds[kind] = _places(subject, kind, data.spans)
            elif kind == "neuron":
                ground.kinds[kind] = Neurons(shape.n_layers, shape.d_mlp)
            elif kind == "coordinate":
                ground.kinds[kind] = Features(kind, site, PICTURE, ground.width)
            elif kind == "axis":
                ground.kinds[kind] = fitted_axes(ground, stream(ground, data.discovery))
            elif kind == "feature":
                ground.kinds[kind] = given_dictionary(
                    ground, lambda: stream(ground, [*data.discovery, *data.texts]), _sides(ground)
                )
        return ground

    def searches(self, kind: str, ground: PictureGround) -> list[Search | SubspaceSearch]:
        """Every search of a row."""
        return list(SUBSPACES) if kind == "subspace" else list(searches_of(kind, ground))

    def controls(self, ground: PictureGround) -> Json:  # noqa: ARG002 - as all worlds
        """None beyond random units."""
        return {}

    def by_place(self, ground: PictureGround) -> Json:  # noqa: ARG002 - as all worlds
        """None: an outcome that is a picture is not right or wrong."""
        return {}

    def shown(self, ground: PictureGround, entries: Sequence[Entry], tried: Tried) -> list[Section]:
        """Pictures, and what they become when the units found have the other picture's values."""
        pairs = ground.data.judged[:SHOWN]
        ready = Pictures(ground.subject, pairs, ground.config.steps)
        own, other = ready.patcher.own, ready.patcher.other
        columns = {
            "its reference": [Framed(pair.clean.references[0], pair.clean.instruction) for pair in pairs],
            "its picture": _framed(ground.subject, own),
            "the other reference": [Framed(pair.counterfactual.references[0]) for pair in pairs],
            "the other's picture": _framed(ground.subject, other),
        }
        for kind in dict.fromkeys(entry.kind for entry in entries if not entry.reason):
            mine = [entry for entry in entries if entry.kind == kind and not entry.reason]
            best = leading(mine, tried, ground.config)
            assert best.among is not None  # noqa: S101 - it was run
            units = best.order[: compared(ground.config, best)]
            made = best.among.exchange(ready, units).latents
            columns[f"{kind}: {best.search.name}"] = _framed(ground.subject, made)
        text = (
            "Columns are judged pairs. Below the two references and their pictures: the first picture made again, with the other "
            f"one's values of {ground.config.share:.0%} of each kind's units, those of the search that is most faithful on "
            "validation pairs."
        )
        return [Section("What is exchanged", text, grid=Grid(list(columns.items())))]


PICTURES = PictureWorld()


def _places(subject: ImageGenerator, kind: str, spans: Sequence[str]) -> Places:
    layers = range(subject.shape.n_layers)
    if kind == "layer":
        return Places(kind, tuple((Site("resid_post", la), Span(span)) for span in spans for la in layers))
    if kind == "head":
        return Places(kind, tuple((site, ALL) for site in subject.heads()))
    found = [Site(each, layer) for layer in layers for each in ("attn_out", "mlp_out")]
    return Places(kind, tuple((site, ALL) for site in found if _has(subject, site)))


def _has(subject: ImageGenerator, site: Site) -> bool:
    try:
        subject.validate(site)
    except SubjectError:
        return False
    return True


def _sides(ground: PictureGround) -> tuple[torch.Tensor, torch.Tensor]:
    place = [(ground.site, ground.span)]
    ready = [part.patcher for part in parts(ground, ground.data.discovery)]
    clean, other = (
        torch.cat([part.values(place, getattr(part, side))[0].values for part in ready]) for side in ("base", "source_batch")
    )
    return clean, other


def _framed(subject: ImageGenerator, latents: torch.Tensor) -> list[Framed]:
    return [Framed(picture) for picture in subject.pixels(latents)]
