"""Every search among numbered units: each gives a score per unit, smaller being more wanted, from pairs alone.

    SEARCHES["head"]["attribution"][0].scores(ground, ground.data.discovery)          # (unit, pair) or (unit,)

Effects keep their sign (metric after minus before), so a unit that helps the answer has the most negative score.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.measures.intervals import Array
from mediant.search.acdc import acdc
from mediant.search.attribution import eap
from mediant.search.circuits import greedy, strongest
from mediant.search.feature_masks import dbm
from mediant.search.flow_routes import flow_routes
from mediant.search.interchange import Interchanges
from mediant.search.linear_rules import Mask, fit_logistic, fit_sparse
from mediant.search.masks import optimise_edges
from mediant.search.node_attribution import attribute, attribute_features
from mediant.search.patching import Patcher, neuron_effects
from mediant.search.readout import read_changes
from mediant.search.site_masks import mask_sites
from mediant.studies.mediation.ground import LAST, AnswerGround
from mediant.studies.mediation.values import values_of_sides
from mediant.tasks.encode import encode
from mediant.tasks.interchange import Interchange

Scores = Callable[[Any, Sequence[Any]], Array]
CERTAIN = 1e3
ACDC_PAIRS = 8
FAMILIES = ("patching", "attribution", "integrated", "learning", "probing", "observing")


@dataclass(frozen=True)
class Search:
    """One way of searching.

    Attributes:
        family: the matrix's column.
        slug: in names of measures.
        name: what is done.
        scores: see above.
    """

    family: str
    slug: str
    name: str
    scores: Scores
    needs_variable: bool = False


def one_by_one(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """Exchange every place by itself."""
    places = ground.places(kind).places
    spans: dict[Span, list[int]] = defaultdict(list)
    for i, (_, span) in enumerate(places):
        spans[span].append(i)
    found = np.zeros((len(places), len(pairs)))
    for i in range(0, len(pairs), ground.config.batch_size):
        some = pairs[i : i + ground.config.batch_size]
        ready = Patcher(ground.subject, encode(ground.subject, some), by=ground.by)
        for span, units in spans.items():
            found[units, i : i + len(some)] = ready.grid([places[u][0] for u in units], [span])[:, 0]
    return found


def features_one_by_one(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """Exchange every feature that differs by itself."""
    chosen = ground.features(kind)
    found = np.zeros((chosen.n_features, len(pairs)))
    live = list(chosen.available)
    for i in range(0, len(pairs), ground.config.batch_size):
        some = pairs[i : i + ground.config.batch_size]
        ready = Patcher(ground.subject, encode(ground.subject, some), by=ground.by)

        def alone(feature: int, ready: Patcher = ready) -> Callable[[int], object]:
            return lambda copy: replace(
                ready.swap(chosen.site, chosen.span, copy=copy), features=chosen.features, index=(feature,)
            )

        found[live, i : i + len(some)] = ready.each([alone(u) for u in live])  # type: ignore[misc]
    return found


def neurons_one_by_one(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """Exchange every neuron by itself, where there are few enough.

    Raises:
        TaskError: there are not.
    """
    shape, many = ground.subject.shape, ground.kinds["neuron"].n_units
    if many > ground.config.n_exact:
        raise TaskError(
            f"{many:,} neurons one by one, on {len(pairs)} pairs, are {many * len(pairs):,} runs; allow it with n_exact = {many}"
        )
    found = np.zeros((many, len(pairs)))
    for i in range(0, len(pairs), ground.config.batch_size):
        some = pairs[i : i + ground.config.batch_size]
        ready = Patcher(ground.subject, encode(ground.subject, some), by=ground.by)
        for layer in range(shape.n_layers):
            units = slice(layer * shape.d_mlp, (layer + 1) * shape.d_mlp)
            found[units, i : i + len(some)] = neuron_effects(ready, layer, "all", range(shape.d_mlp))
    return found


def edges_by_probe(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:  # noqa: ARG001 - as all searches
    """Nothing: an edge has no values of its own.

    Raises:
        TaskError: always.
    """
    raise TaskError("an edge hands on its source's values and has none of its own that a probe could read; see the heads' row")


def places_by_gradient(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str, steps: int = 1) -> Array:
    """Change times gradient, for every place at once."""
    places = ground.places(kind).places
    found = np.zeros((len(places), len(pairs)))
    for span in dict.fromkeys(span for _, span in places):
        units = [i for i, (_, each) in enumerate(places) if each == span]
        found[units] = attribute(ground.subject, pairs, [places[u][0] for u in units], span, by=ground.by, steps=steps)
    return found


def neurons_by_gradient(ground: AnswerGround, pairs: Sequence[Pair], *, steps: int = 1) -> Array:
    """Change times gradient, neuron by neuron."""
    sites = [Site("mlp_post", layer) for layer in range(ground.subject.shape.n_layers)]
    return np.concatenate(attribute_features(ground.subject, pairs, sites, by=ground.by, steps=steps))


def features_by_gradient(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str, steps: int = 1) -> Array:
    """Change times gradient, feature by feature."""
    chosen = ground.features(kind)
    return attribute_features(
        ground.subject, pairs, [chosen.site], chosen.span, features=chosen.features, by=ground.by, steps=steps
    )[0]


def edges_by_gradient(ground: AnswerGround, pairs: Sequence[Pair], *, method: str = "eap") -> Array:
    """Edge attribution."""
    return _of_edges(eap(ground.subject, pairs, metric=ground.by, method=method, steps=ground.config.gradient_steps))


def _of_edges(scores: EdgeScores) -> Array:
    return np.asarray(scores.within[0][scores.graph.exists])


def places_by_mask(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """Gates on places, learned together."""
    places, layers = list(ground.places(kind).places), range(ground.subject.shape.n_layers)
    unit, price = "site", 0.01
    given: list[Site | str | tuple[Site, Span]] = [*places]
    if kind == "head":
        unit, given, price = "head", [Site("head_z", layer) for layer in layers], 0.003
    found = mask_sites(ground.subject, pairs, given, unit=unit, price=price, epochs=ground.config.epochs, lr=0.2)
    return -torch.cat(list(found.wishes)).double().numpy()


def neurons_by_mask(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """Gates on neurons, learned together."""
    sites = [Site("mlp_post", layer) for layer in range(ground.subject.shape.n_layers)]
    found = mask_sites(ground.subject, pairs, list(sites), unit="neuron", price=3e-5, epochs=ground.config.epochs, lr=0.2)
    return -torch.cat(list(found.wishes)).double().numpy()


def features_by_mask(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """Differential binary masking in the site's basis."""
    chosen = ground.features(kind)
    learned = dbm(exchanges(ground, pairs), chosen.features, epochs=ground.config.epochs, lr=0.1, price=1e-3)
    assert learned.wishes is not None  # noqa: S101 - masks have them
    return -learned.wishes.double().numpy()


def exchanges(ground: AnswerGround, pairs: Sequence[Pair]) -> Interchanges:
    """Pairs as interchanges of the one variable in which they differ: the answer has to become the counterfactual's."""
    items = [as_interchange(pair) for pair in pairs]
    return Interchanges(ground.subject, items, ground.site, LAST, batch_size=16)


def as_interchange(pair: Pair) -> Interchange:
    """The source's answer is expected."""
    return Interchange(
        pair.id, pair.clean, pair.counterfactual, pair.answer, pair.counterfactual_answer, pair.counterfactual_answer
    )


def edges_by_gates(ground: AnswerGround, pairs: Sequence[Pair], *, sampling: str = "hard_concrete") -> Array:
    """Gates on edges, learned together."""
    steps = ground.config.edge_steps
    found = optimise_edges(ground.subject, pairs, sparsity=1.0, steps=steps, sampling=sampling, draws=1, seed=ground.config.seed)
    return _of_edges(found)


def edges_by_acdc(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """Attribution's strongest edges, those first whose loss is missed when they are cut one by one."""
    scores = eap(ground.subject, pairs, metric=ground.by)
    within = strongest(scores, rule="most_negative").circuit(ground.config.acdc_edges, prune=False)
    # Pairs come frame by frame, so a few are taken from all of them.
    few = pairs[:: max(1, len(pairs) // ACDC_PAIRS)][:ACDC_PAIRS]
    found = acdc(ground.subject, few, threshold=1e-3, within=within)
    order = _of_edges(scores)
    kept = found.circuit.within[0][scores.graph.exists]
    # Kept edges come first, each group in attribution's order.
    return np.asarray(np.where(kept, order - 2 * np.abs(order).max(), order))


def edges_by_flow(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """Information-flow routes, grown from the logits."""
    scores, edges = flow_routes(ground.subject, pairs), ground.edges()
    most = max(1, round(max(ground.config.shares) * edges.n_units))
    order = greedy(scores, rule="most_negative", joined=False, limit=most).edges
    found = np.zeros(edges.n_units)
    units = edges.units(order[:, 2], order[:, 3])
    found[units] = -np.arange(len(units), 0, -1)
    return found


def places_by_probe(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """How well a probe of each place tells the variable's two values apart, on prompts it was not fitted on."""
    places = ground.places(kind).places
    found = np.zeros(len(places))
    for span in dict.fromkeys(span for _, span in places):
        units = [i for i, (_, each) in enumerate(places) if each == span]
        at = "last" if span == Span("all") else span
        values, y = _labelled(ground, pairs, [places[u][0] for u in units], at)
        found[units] = [-separation(values[places[u][0]], y) for u in units]
    return found


def _labelled(
    ground: AnswerGround, pairs: Sequence[Pair], sites: Sequence[Site], span: Span | str
) -> tuple[dict[Site, Array], Mask]:
    """Values of all prompts, clean ones first, and which value of the variable each has."""
    clean = np.array([pair.variables[ground.data.variable] == ground.data.values[0] for pair in pairs])
    return values_of_sides(ground.subject, pairs, sites, Span.of(span)), np.concatenate([clean, ~clean])


def separation(x: Array, y: Mask) -> float:
    """Distance of the classes' means along a probe, in standard deviations, on the half it was not fitted on; both ways."""
    n, found = len(y) // 2, []
    fold = np.tile(np.arange(n) % 2 == 0, 2)
    for fit in (fold, ~fold):
        if len(set(y[fit].tolist())) < 2 or len(set(y[~fit].tolist())) < 2:
            return 0.0
        along = x @ fit_logistic(x[fit], y[fit]).vector
        high, low = along[~fit & y], along[~fit & ~y]
        gap, spread = float(high.mean() - low.mean()), np.sqrt((high.var() + low.var()) / 2)
        # Classes without any spread are as far apart as can be told.
        found.append(gap / max(spread, abs(gap) / CERTAIN) if gap else 0.0)
    return float(np.mean(found))


def neurons_by_probe(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """Sparse probes, a layer at a time."""
    sites = [Site("mlp_post", layer) for layer in range(ground.subject.shape.n_layers)]
    values, y = _labelled(ground, pairs, sites, "last")
    return np.concatenate([probe_weights(values[site], y) for site in sites])


def features_by_probe(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """One sparse probe on all features."""
    chosen = ground.features(kind)
    values, y = _labelled(ground, pairs, [chosen.site], "last")
    x = torch.from_numpy(values[chosen.site]).float()
    encoded = x if chosen.features is None else chosen.features.encode(x)
    return probe_weights(encoded.double().numpy(), y)


def probe_weights(x: Array, y: Mask) -> Array:
    """Minus the weights of an l1 probe on standardised features; those left out follow by how far they tell classes apart."""
    # For an order of features a few hundred steps are as good as the last digit.
    weights = np.abs(fit_sparse(x, y, most=300).vector * x.std(0))
    spread = np.sqrt((x[y].var(0) + x[~y].var(0)) / 2)
    apart = np.abs(x[y].mean(0) - x[~y].mean(0)) / np.where(spread > 0, spread, np.inf)
    rest = apart / (1 + apart)
    smallest = weights[weights > 0].min() if (weights > 0).any() else 1.0
    return np.asarray(-np.where(weights > 0, weights, 0.5 * smallest * rest))


def places_by_lens(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """What each place's change says to the unembedding; nothing where it is not at the last token."""
    places = ground.places(kind).places
    said = read_changes(ground.subject, pairs, [site for site, _ in places])
    heard = [span in (LAST, Span("all")) for _, span in places]
    return np.stack([one.sum(0) * here for one, here in zip(said, heard, strict=True)])


def neurons_by_lens(ground: AnswerGround, pairs: Sequence[Pair]) -> Array:
    """What each neuron's change says to the unembedding."""
    sites = [Site("mlp_post", layer) for layer in range(ground.subject.shape.n_layers)]
    return np.concatenate(read_changes(ground.subject, pairs, sites))


def features_by_lens(ground: AnswerGround, pairs: Sequence[Pair], *, kind: str) -> Array:
    """What each feature's change says to the unembedding."""
    chosen = ground.features(kind)
    return read_changes(ground.subject, pairs, [chosen.site], features=chosen.features)[0]


def row(
    patching: Scores, attribution: Scores, integrated: Scores, learning: Scores, probing: Scores, observing: Scores, *,
    learned: tuple[str, str] = ("mask", "mask learned"), probe: str = "probe", observed: tuple[str, str] = ("lens", "lens"),
) -> list[Search]:  # fmt: skip
    """One search per family; `learned` and `observed` are slug and name."""
    return [
        Search("patching", "patching", "patched one by one", patching),
        Search("attribution", "attribution", "attribution patching", attribution),
        Search("integrated", "integrated", "integrated gradients", integrated),
        Search("learning", *learned, learning),
        Search("probing", "probe", probe, probing, needs_variable=True),
        Search("observing", *observed, observing),
    ]


DBM = ("dbm", "mask learned (DBM)")


def searches_of(kind: str, ground: AnswerGround) -> list[Search]:
    """Every search among units of a kind."""
    steps = ground.config.gradient_steps
    if kind == "edge":
        return _edge_searches(ground)
    if kind == "neuron":
        integrated = partial(neurons_by_gradient, steps=steps)
        return row(
            neurons_one_by_one, neurons_by_gradient, integrated, neurons_by_mask, neurons_by_probe, neurons_by_lens,
            probe="sparse probes",
        )  # fmt: skip
    if kind in ("layer", "sublayer", "head"):
        gradient = partial(places_by_gradient, kind=kind)
        others = (partial(one, kind=kind) for one in (places_by_mask, places_by_probe, places_by_lens))
        return row(partial(one_by_one, kind=kind), gradient, partial(gradient, steps=steps), *others)
    gradient = partial(features_by_gradient, kind=kind)
    others = (partial(one, kind=kind) for one in (features_by_mask, features_by_probe, features_by_lens))
    exact = partial(features_one_by_one, kind=kind)
    return row(exact, gradient, partial(gradient, steps=steps), *others, learned=DBM, probe="sparse probe")


def _edge_searches(ground: AnswerGround) -> list[Search]:
    acdc_too = [Search("patching", "acdc", "ACDC among the strongest", edges_by_acdc)] if ground.config.acdc_edges else []
    return [
        *acdc_too,
        Search("attribution", "eap", "EAP", edges_by_gradient),
        Search("integrated", "eap_ig", "EAP-IG", partial(edges_by_gradient, method="ig-inputs")),
        Search("learning", "gates", "gates, hard concrete", edges_by_gates),
        Search("learning", "ugs", "gates, uniform (UGS)", partial(edges_by_gates, sampling="uniform")),
        Search("probing", "probe", "probe", edges_by_probe),
        Search("observing", "flow_routes", "information-flow routes", edges_by_flow),
    ]


def best_first(scores: Array, available: Sequence[int], most: int) -> list[int]:
    """The `most` wanted units among those available."""
    allowed = np.zeros(len(scores), dtype=bool)
    allowed[list(available)] = True
    order = (int(i) for i in np.argsort(scores, kind="stable") if allowed[i])
    return list(islice(order, most))
