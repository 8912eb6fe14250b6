"""Path patching: does one part act *through* another? (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023)

    path_patch(patcher, sender=Site("head_z", 5, 5), receivers=[Site("v", 8, 1)])
    direct_effect(patcher, Site("head_z", 9, 9))                  # the path straight to the logits

First pass: the sender takes its source value while every other head (and, without `through_mlps`, every MLP) is held at
its base value, so only the sender's own contribution reaches the receivers' ports, which are captured. Second pass: the
base run with the receivers' ports at those values and everything after them recomputed.
"""

from collections.abc import Sequence

import torch

from mediant.core.errors import OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Edit, swap
from mediant.interventions.execute import run
from mediant.interventions.replay import replay
from mediant.measures.intervals import Array
from mediant.measures.metrics import Outcome
from mediant.search.patching import Patcher

PORTS = ("q", "k", "v", "mlp_in", "final_resid")
# Where in its layer a part is computed: what reads the stream before what writes it.
_ORDER = {"resid_pre": 0, "q": 1, "k": 1, "v": 1, "head_z": 2, "head_result": 2, "attn_out": 3, "resid_mid": 4, "mlp_in": 5,
          "mlp_out": 6, "resid_post": 7}  # fmt: skip
SENDERS = ("head_z", "head_result", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")


def path_patch(
    patcher: Patcher, sender: Site, receivers: Sequence[Site], *, span: Span | str = "all", through_mlps: bool = True
) -> Array:
    """Effect of `sender` on the metric through the `receivers`' ports, one value per pair.

    Args:
        receivers: ports (`q`, `k`, `v` of a layer's heads, `mlp_in`, or `final_resid`) of later layers.
        through_mlps: let MLPs between sender and receivers respond, as in the published recipe; otherwise only
            the straight edge counts.

    Raises:
        OutOfRange: the sender does not write to the stream, or a receiver is no port, not later than the sender, or missing.
    """
    sender, receivers = _sender(patcher, sender), [patcher.subject.validate(receiver) for receiver in receivers]
    if not receivers:
        raise OutOfRange("no receivers were given, so there is no path to patch")
    for receiver in receivers:
        _check(sender, receiver)
    held = _held(patcher, sender, through_mlps)
    with torch.no_grad():
        first = replay(
            patcher.base,
            [*held, patcher.swap(sender, span)],
            capture=[(r, Span("all")) for r in receivers],
            keep=patcher.pairs.keep,
        )
        moved = [swap(r, "all", first.captured[r, Span("all")]) for r in receivers]
        second = replay(patcher.base, moved, keep=patcher.pairs.keep)
    return patcher.measured(Outcome(patcher.pairs, second.logits)) - patcher.before


def direct_effect(patcher: Patcher, sender: Site, *, span: Span | str = "all") -> Array:
    """Effect of `sender` with every later head and MLP held at its base value, one value per pair.

    Raises:
        OutOfRange: the sender does not write to the stream.
    """
    sender = _sender(patcher, sender)
    with torch.no_grad():
        out = replay(patcher.base, [*_held(patcher, sender, False), patcher.swap(sender, span)], keep=patcher.pairs.keep)
    return patcher.measured(Outcome(patcher.pairs, out.logits)) - patcher.before


def held_effect(patcher: Patcher, sender: Site, held: Sequence[Site], *, span: Span | str = "all") -> Array:
    """Effect of `sender` while the `held` sites keep their base values, one value per pair."""
    places = [(site, Span("all")) for site in held]
    with torch.no_grad():
        found = run(patcher.subject, patcher.pairs.base, capture=places).captured
        keep = [swap(site, "all", found[site, Span("all")]) for site in held]
    return patcher.effect([patcher.swap(sender, span), *keep])[0]


def _held(patcher: Patcher, sender: Site, through_mlps: bool) -> list[Edit]:
    """Edits that hold every head (and MLP) from the sender's layer on at its base value."""
    first = sender.layer or 0
    layers = range(first, patcher.subject.shape.n_layers)
    # What the sender's own layer has computed before it cannot respond; its MLP comes after its heads.
    after_heads = first if sender.kind != "mlp_out" else first + 1
    sites = [Site("head_z", layer) for layer in layers if layer >= after_heads]
    if not through_mlps:
        sites += [Site("mlp_out", layer) for layer in layers if layer >= after_heads]
    with torch.no_grad():
        found = run(patcher.subject, patcher.pairs.base, capture=[(site, Span("all")) for site in sites]).captured
    return [swap(site, "all", found[site, Span("all")]) for site in sites]


def _sender(patcher: Patcher, sender: Site) -> Site:
    sender = patcher.subject.validate(sender)
    if sender.kind not in SENDERS:
        raise OutOfRange(f"{sender} does not write to the stream by itself; senders are {', '.join(SENDERS)}")
    return sender


def _check(sender: Site, receiver: Site) -> None:
    if receiver.kind not in PORTS:
        raise OutOfRange(f"{receiver} is no port; paths end at {', '.join(PORTS)}")
    if receiver.layer is None or sender.layer is None:
        return
    if (sender.layer, _ORDER[sender.kind]) >= (receiver.layer, _ORDER[receiver.kind]):
        raise OutOfRange(f"{receiver} does not come after {sender}, so no path leads there")
