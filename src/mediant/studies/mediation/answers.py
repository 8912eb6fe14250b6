"""The world of answers: prompts, language models and models with eyes.

The site whose coordinates, axes, features and subspaces are searched is the first layer whose stream at the last token carries
half of the effect on discovery pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch

from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.mediator import Mediator
from mediant.measures.behaviour import refuse_unless_done
from mediant.measures.metrics import metric
from mediant.report.page import Framed, Section, Strip, Token
from mediant.runs.folder import Json
from mediant.search.alignment import interchange_map
from mediant.search.interchange import Interchanges
from mediant.search.patching import Patcher
from mediant.search.rotations import das
from mediant.studies.mediation import task
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.ground import LAST, AnswerGround, Ground, Values, fitted_axes, given_dictionary
from mediant.studies.mediation.measures import Tried
from mediant.studies.mediation.mediators import Features, Neurons, edges_of, places_of
from mediant.studies.mediation.method import Entry, Numbers
from mediant.studies.mediation.ready import Answers
from mediant.studies.mediation.searches import Search, as_interchange, searches_of
from mediant.studies.mediation.subspaces import SUBSPACES, SubspaceSearch
from mediant.studies.mediation.values import SIDES, values_at
from mediant.subject import Subject
from mediant.subject.untrained import untrained
from mediant.subject.vision import as_pixels
from mediant.tasks import plain_text
from mediant.tasks.encode import encode
from mediant.tasks.interchange import Interchange

HALF = 0.5
# Many models keep a stream of enormous length at the first token, which would be all that a dictionary learns.
AFTER_FIRST = "1:"


@dataclass(frozen=True)
class AnswerWorld:
    """See `World`."""

    definitions: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "the counterfactual's answer"
    limits: Sequence[str] = ()

    def load(self, config: Config, subject: Subject) -> Data[Pair]:
        """Sample or read the pairs; every pair is encoded once, so that none can fail later.

        Raises:
            UnknownName: no such task or metric.
            OutOfRange: a site this subject does not have.
            TaskError: a pair that cannot be used, named.
        """
        data = task.load(config, subject)
        metric(data.metric)
        if config.site is not None:
            subject.validate(config.site)
        for pairs in (data.discovery, data.validation, *data.sets.values()):
            if pairs:
                encode(subject, pairs)
        return data

    def ready(self, config: Config, subject: Subject, pairs: Sequence[Pair], *, by: str) -> Answers:  # noqa: ARG002
        """A batch of pairs."""
        return Answers(subject, pairs, by)

    def begin(self, config: Config, subject: Subject, data: Data[Pair]) -> Site:
        """Refuse where there is no behaviour; choose the site.

        Raises:
            TaskNotDone: the subject prefers the answer no more often than chance.
        """
        size = config.batch_size
        parts = [data.discovery[i : i + size] for i in range(0, len(data.discovery), size)]
        ready = [Answers(subject, part, data.metric) for part in parts]
        preferred = np.concatenate([one.patcher.outcome.preferred.double().cpu().numpy() for one in ready])
        total = np.concatenate([one.patcher.total for one in ready])
        refuse_unless_done(preferred, total, task=data.name, subject=subject.name)
        return Site.parse(config.site) if config.site else half_carried(subject, data, size)

    def ground(self, config: Config, subject: Subject, data: Data[Pair], site: Site) -> AnswerGround:
        """All kinds of units."""
        return prepare_ground(config, subject, data, site)

    def searches(self, kind: str, ground: AnswerGround) -> list[Search | SubspaceSearch]:
        """Every search of a row."""
        return list(SUBSPACES) if kind == "subspace" else list(searches_of(kind, ground))

    def controls(self, ground: AnswerGround) -> Json:
        """Interchange accuracy of DAS here and where there is nothing to find."""
        if "subspace" not in ground.config.kinds:
            return {}
        return das_controls(ground, ground.data.judged, ground.data.heldout)

    def by_place(self, ground: AnswerGround) -> Json:
        """Interchange accuracy of every layer's stream at every span, here and with random weights."""
        spans = _later(ground.subject, ground.data)
        sites = [Site("resid_post", layer) for layer in range(ground.subject.shape.n_layers)]
        nobody = untrained(ground.subject, seed=ground.config.seed)
        maps = {
            name: interchange_map(subject, ground.data.judged, sites, spans, batch_size=ground.config.batch_size)
            for name, subject in (("trained", ground.subject), ("random weights", nobody))
        }
        return {"spans": list(spans), "turned": {name: found.astype(int).tolist() for name, found in maps.items()}}

    def shown(self, ground: AnswerGround, entries: Sequence[Entry], tried: Tried) -> list[Section]:  # noqa: ARG002
        """Prompts."""
        return [_prompts(ground)]


ANSWERS = AnswerWorld()


def half_carried(subject: Subject, data: Data[Pair], batch_size: int) -> Site:
    """The first layer whose stream at the last token carries half of the effect on discovery pairs; the last where none does."""
    sites = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)]
    effects, total = [], []
    for i in range(0, len(data.discovery), batch_size):
        ready = Patcher(subject, encode(subject, data.discovery[i : i + batch_size]), by=data.metric)
        effects.append(ready.grid(sites, [LAST])[:, 0])
        total.append(ready.total)
    share = np.concatenate(effects, axis=1).mean(1) / np.concatenate(total).mean()
    return next((site for site, one in zip(sites, share, strict=True) if one >= HALF), sites[-1])


def prepare_ground(config: Config, subject: Subject, data: Data[Pair], site: Site) -> AnswerGround:
    """All kinds of units; axes are fitted and a dictionary is learned where rows ask for them."""
    width, shape = subject.shape.d_model, subject.shape
    ground = Ground(config, subject, data, site, LAST, {}, one_run(subject, data))
    prompts = [side for pair in data.discovery for side in (pair.clean, pair.counterfactual)]
    for kind in config.kinds:
        if kind in ("layer", "sublayer", "head"):
            ground.kinds[kind] = places_of(subject, kind, _later(subject, data))
        elif kind == "neuron":
            ground.kinds[kind] = Neurons(shape.n_layers, shape.d_mlp)
        elif kind == "edge":
            ground.kinds[kind] = edges_of(subject)
        elif kind == "coordinate":
            ground.kinds[kind] = Features(kind, site, LAST, width)
        elif kind == "axis":
            ground.kinds[kind] = fitted_axes(ground, values_at(subject, prompts, site, "last"))
        elif kind == "feature":
            ground.kinds[kind] = given_dictionary(ground, lambda: _much(ground, prompts), _sides(ground))
    return ground


def one_run(subject: Subject, data: Data[Pair]) -> int:
    """Tokens times layers of a forward of a discovery prompt."""
    return encode(subject, data.discovery).base.n_cols * subject.shape.n_layers


def _much(ground: AnswerGround, prompts: Sequence[Prompt]) -> Values:
    """Activations a dictionary is learned from: all tokens of the task's prompts and of plain sentences."""
    texts: list[Prompt | str] = [*prompts, *plain_text.sentences(plain_text.count(), seed=ground.config.seed)]
    return values_at(ground.subject, texts, ground.site, AFTER_FIRST)


def _sides(ground: AnswerGround) -> tuple[Values, Values]:
    clean, other = (
        values_at(ground.subject, [getattr(pair, side) for pair in ground.data.discovery], ground.site, "last") for side in SIDES
    )
    return clean, other


def _later(subject: Subject, data: Data[Pair]) -> tuple[str, ...]:
    """Spans of which some token can differ between the two prompts; the others' streams carry nothing."""
    batch = encode(subject, data.discovery)
    return tuple(name for name in data.spans if len(batch.changed(Span.of(name))[0]))


def das_controls(ground: AnswerGround, judged: Sequence[Pair], heldout: Sequence[Pair]) -> Json:
    """Interchange accuracy of DAS, and of the same search where there is nothing to find.

    Returns:
        Per pair, whether the counterfactual answer is preferred: of the trained subject, on judged and on held-out pairs; learned
        towards shuffled answers; and of the same architecture with random weights.
    """
    config, pairs = ground.config, ground.data.discovery
    random = Random(config.seed)
    shuffled = [_expecting(pair, random.random() < 0.5) for pair in pairs]
    nobody = untrained(ground.subject, seed=config.seed)
    found = {"das": _learned(ground, ground.subject, [as_interchange(pair) for pair in pairs])}
    wrong = _learned(ground, ground.subject, shuffled)
    none = _learned(ground, nobody, [as_interchange(pair) for pair in pairs])
    hits = {
        "das_iia": _hits(ground, ground.subject, judged, found["das"]),
        "das_iia_shuffled_answers": _hits(ground, ground.subject, judged, wrong),
        "das_iia_random_weights": _hits(ground, nobody, judged, none),
    }
    return hits | ({"das_iia_heldout": _hits(ground, ground.subject, heldout, found["das"])} if heldout else {})


def _expecting(pair: Pair, source: bool) -> Interchange:
    expected = pair.counterfactual_answer if source else pair.answer
    return Interchange(pair.id, pair.clean, pair.counterfactual, pair.answer, pair.counterfactual_answer, expected)


def _learned(ground: AnswerGround, subject: Subject, items: Sequence[Interchange]) -> Mediator:
    ready = Interchanges(subject, items, ground.site, LAST, batch_size=16)
    return das(ready, k=ground.dimensions(), epochs=ground.config.epochs, seed=ground.config.seed).mediator


def _hits(ground: AnswerGround, subject: Subject, pairs: Sequence[Pair], mediator: Mediator) -> Numbers:
    ready = Interchanges(
        subject, [as_interchange(pair) for pair in pairs], ground.site, LAST, batch_size=ground.config.batch_size
    )
    found: list[bool] = []
    with torch.no_grad():
        for logits, batch in ready.logits(mediator):
            row = torch.arange(len(logits))
            found += (logits[row, batch.expected] > logits[row, batch.own]).tolist()
    return [float(hit) for hit in found]


def _prompts(ground: AnswerGround) -> Section:
    data = ground.data
    judged, other, text = data.judged[0], data.other[:1], data.texts[0]
    shown = [("clean", judged.clean, judged.answer), ("counterfactual", judged.counterfactual, judged.counterfactual_answer)]
    for one in other:
        shown += [("clean", one.clean, one.answer), ("other words", one.counterfactual, one.counterfactual_answer)]
    shown += [("unrelated", text.clean, ""), ("same length", text.counterfactual, "")]
    strips, images = list[Strip](), list[Framed]()
    for label, prompt, answer in shown:
        said = Token(f"  →{answer}") if answer else None
        strips.append(Strip(label, [Token(prompt.text), *([said] if said else [])]))
        if prompt.image is not None:
            images.append(Framed(as_pixels(prompt.image), f"{label}: {prompt.text}"))
    words = (
        "Searches see pairs like the first two. Pairs like the next two ask what else is handed on: they agree in "
        f"{repr(data.variable) if data.variable else 'no known variable'} and differ in the rest. The last two ask what is "
        "disturbed elsewhere."
    )
    return Section("What is exchanged", words, strips, images=images)
