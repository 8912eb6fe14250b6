"""An `Edit` says what value goes where, when: do(mediator := value).

    edits.zero("head_z.9.6", "last")                       # necessity, off-distribution
    edits.swap("resid_post.12", "S2", source)              # interchange: `source` was captured in another run
    edits.add("resid_post.14", "generated", vector, 4.0)   # steer, only after the prompt
    edits.project_out("mlp_out.3", "all", direction)

The mediator is (site, span, features, index); the operation says how its new value comes about. `steps`
limits an edit to some generated tokens, counted from 0, so *when* is part of the edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mediant.core.direction import Direction
from mediant.core.errors import EditError, OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.features import Featurizer

Kind = Literal["swap", "shift", "set", "add", "scale", "project_out", "noise"]
# Tensors, arrays, lists and numbers alike.
Values = Float[Tensor, "*d"] | npt.NDArray[np.floating[Any]] | Sequence[float] | float


@dataclass(frozen=True, eq=False)
class Activation:
    """Values of a site at a span, captured in a run.

    Attributes:
        values: one entry per captured token, shape (n, d), or (n, head, d) for all heads of a per-head site.
        rows, cols: which row and column of the batch each entry comes from, ordered by row, then column.
        calls: where a picture is made in steps, each entry's step, doubled, plus 1 in the pass without the instruction; entries
            are ordered by it first. None where there is one step.
    """

    values: Float[Tensor, "n *d"]
    rows: Int[Tensor, " n"]
    cols: Int[Tensor, " n"]
    calls: Int[Tensor, " n"] | None = None

    def at_step(self, step: int, *, guidance: int = 0) -> "Activation":
        """The entries of one step of a picture, from the pass with the instruction (0) or the one without (1).

        Raises:
            EditError: nothing was captured in it.
        """
        calls = torch.zeros_like(self.rows) if self.calls is None else self.calls
        then = calls == 2 * step + guidance
        if not bool(then.any()):
            raise EditError(
                f"nothing was captured in step {step}, pass {guidance}; captured were {sorted(set(calls.tolist()))} / 2"
            )
        return Activation(self.values[then], self.rows[then], self.cols[then])

    def mean(self) -> "Float[Tensor, '*d']":
        """Mean over all captured tokens (token-agnostic mean ablation)."""
        return self.values.mean(0)

    def since(self, column: int) -> "Activation":
        """The entries from a column on."""
        later = self.cols >= column
        return Activation(self.values[later], self.rows[later], self.cols[later])

    def select(self, rows: Int[Tensor, " m"], cols: Int[Tensor, " m"]) -> "Activation":
        """The entries at some tokens.

        Raises:
            EditError: a token was not captured.
        """
        width = int(torch.cat([self.cols, cols]).max()) + 1 if len(cols) else 1
        have, want = self.rows * width + self.cols, rows * width + cols
        found = torch.searchsorted(have, want).clamp(max=len(have) - 1)
        if not bool((have[found] == want).all()):
            raise EditError("these tokens were not captured; capture the source at a span that contains them")
        return Activation(self.values[found], rows, cols)


@dataclass(frozen=True, eq=False)
class Targets:
    """The tokens of one forward that an edit or capture concerns.

    Attributes:
        rows, cols: row and absolute column of each.
        prompts: rows counted within one copy, where copies of a batch are folded into one.
        positions: columns counted from the first token of each row's prompt, whatever the padding.
        chosen: its place among all `total` tokens of the span, of which this forward may cover only some.
        steps: generated tokens among them, counted from 0.
    """

    rows: Int[Tensor, " n"]
    cols: Int[Tensor, " n"]
    prompts: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    chosen: Int[Tensor, " n"]
    total: int
    steps: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention. Build it with the functions below rather than by hand.

    Attributes:
        value: what the kind needs: new values (swap: one per token; set: one for all), what is added (shift: one per token; add:
            one for all), a direction (project_out), a number (scale), a standard deviation (noise).
        features, index: work in this basis, on these features only; None means the site's own coordinates.
        gate: feature by feature, the share of the change that is written, (k,) from 0 to 1; or one for all, (1,), or, at a site
            of all heads, one per head, (head, 1); None means all of it.
        rows: batch rows it applies to; None means all.
        steps: generated tokens, or steps of making a picture, that it applies to, from 0; None means all that its span covers.
        guidance: the pass of a picture's step it applies to: 0 with the instruction, 1 without; None means both.
        places: rows and columns of a batch, where the caller has resolved the span already.
    """

    site: Site
    span: Span
    kind: Kind
    value: Float[Tensor, "*any"]
    features: Featurizer | None = None
    index: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    seed: int = 0
    places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]] | None = None
    guidance: int | None = None
    gate: Float[Tensor, "*k"] | None = None

    @property
    def label(self) -> str:
        """Short name for reports."""
        return f"{self.kind} {self.site} at {self.span}"

    @property
    def empty(self) -> bool:
        """Whether the edit targets nothing (no rows, steps or features), which is a clean no-op."""
        return () in (self.rows, self.steps, self.index) or (self.places is not None and not len(self.places[0]))

    def apply(self, old: Float[Tensor, "n *d"], targets: "Targets") -> Float[Tensor, "n *d"]:
        """New values for `old`, the values at the target tokens.

        Raises:
            EditError: the value does not fit the site.
        """
        if self.features is None and self.index is None and self.gate is None:
            return self._operate(old, targets)
        if self.features is None:
            return self._only(old, self._operate(old, targets))
        try:
            f = self.features.encode(old)
        except RuntimeError as error:
            raise EditError(f"{self.label}: the features do not fit values of shape {tuple(old.shape[1:])}: {error}") from error
        swapped = self.kind == "swap"
        target = self.features.encode(self._swapped(old, targets)) if swapped else self._operate(f, targets)
        return old + (self.features.decode(self._only(f, target)) - self.features.decode(f))

    def _only(self, old: Tensor, wanted: Tensor) -> Tensor:
        """`wanted` in the features this edit is about, each as far as its gate is open, and `old` in all others."""
        keep, new = self._checked_index(old.shape[-1]), old.clone()
        change = wanted
        if self.gate is not None:
            gates = tuple(self.gate.shape)
            # One per feature; or, of all heads together, one per head.
            if gates not in ((1,), old.shape[-1:], (*old.shape[1:-1], 1)):
                raise EditError(f"{self.label}: expected a gate for each of {old.shape[-1]} features, got {gates}")
            change = old + self.gate.to(old) * (wanted - old)
        if self.index is None:
            return change
        new[..., keep] = change[..., keep]
        return new

    def _checked_index(self, size: int) -> list[int]:
        keep = list(range(size)) if self.index is None else list(self.index)
        wrong = [i for i in keep if not 0 <= i < size]
        if wrong:
            raise OutOfRange(f"{self.label}: features {wrong[:5]} do not exist, this mediator has features 0 to {size - 1}")
        return keep

    def _operate(self, old: Tensor, targets: "Targets") -> Tensor:
        if self.kind == "swap":
            return self._swapped(old, targets)
        if self.kind == "shift":
            return old + self._swapped(old, targets)
        value = self.value.to(old)
        if self.kind == "scale":
            return old * value
        if self.kind == "noise":
            return old + value * self._drawn(old, targets)
        if value.ndim > old.ndim - 1 or (value.ndim and value.shape != old.shape[old.ndim - value.ndim :]):
            raise EditError(f"{self.label}: expected a value of shape {tuple(old.shape[1:])}, got {tuple(value.shape)}")
        if self.kind == "set":
            return value.expand_as(old).clone()
        if self.kind == "add":
            return old + value
        return old - (old @ value)[..., None] * value

    def _drawn(self, old: Tensor, targets: "Targets") -> Tensor:
        """Standard normal noise by seed, prompt and position alone: caches, padding and copies make no difference."""
        places = zip(targets.prompts.tolist(), targets.positions.tolist(), strict=True)
        seeds = [hash((self.seed, prompt, position)) & 0x7FFF_FFFF for prompt, position in places]
        drawn = [torch.randn(old.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(old)

    def _swapped(self, old: Tensor, targets: "Targets") -> Tensor:
        if self.value.shape[0] != targets.total:
            raise EditError(
                f"{self.label}: the source holds {self.value.shape[0]} tokens where the base has {targets.total}; "
                "capture the source at the same span, in a batch with the same rows"
            )
        new = self.value[targets.chosen.to(self.value.device)].to(old)
        if new.shape != old.shape:
            raise EditError(f"{self.label}: expected values of shape {tuple(old.shape[1:])}, got {tuple(new.shape[1:])}")
        return new


@dataclass(frozen=True)
class Where:
    """Optional limits shared by all edits: see `Edit` for their meaning."""

    features: Featurizer | None = None
    index: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    guidance: int | None = None


EVERYWHERE = Where()


def _edit(kind: Kind, site: Site | str, span: Span | str, value: Values, where: Where, seed: int = 0) -> Edit:
    if not isinstance(site, Site | str):
        raise EditError(f"{kind} starts with a site such as 'resid_post.12', got {type(site).__name__}")
    place = Site.parse(site) if isinstance(site, str) else site
    return Edit(
        place, Span.of(span), kind, torch.as_tensor(value), where.features, where.index, where.rows, where.steps, seed,
        guidance=where.guidance,
    )  # fmt: skip


def swap(site: Site | str, span: Span | str, source: Activation, where: Where = EVERYWHERE) -> Edit:
    """Interchange: write the values that `source` captured at the same span of another run."""
    if not isinstance(source, Activation):
        raise EditError(
            f"swap writes what another run captured (an Activation, from `run(..., capture=...).captured`), got "
            f"{type(source).__name__}; `set_to` writes one value to every token"
        )
    return _edit("swap", site, span, source.values, where)


def swap_at(site: Site, span: Span, source: Activation) -> Edit:
    """Interchange at the very rows and columns that `source` names; `span` is only its label."""
    return Edit(site, span, "swap", source.values, places=(source.rows, source.cols))


def shift(site: Site | str, span: Span | str, change: Activation, where: Where = EVERYWHERE) -> Edit:
    """Add to every token of the span a vector of its own; by a change of zero, gradients of what follows can be had."""
    return _edit("shift", site, span, change.values, where)


def set_to(site: Site | str, span: Span | str, value: Values, where: Where = EVERYWHERE) -> Edit:
    """Write one value to every token of the span."""
    return _edit("set", site, span, value, where)


def zero(site: Site | str, span: Span | str, where: Where = EVERYWHERE) -> Edit:
    """Write zero (a necessity test that leaves the model's usual range)."""
    return _edit("set", site, span, torch.zeros(()), where)


def mean(site: Site | str, span: Span | str, over: Activation, where: Where = EVERYWHERE) -> Edit:
    """Write the mean of captured activations (token-agnostic mean ablation)."""
    return _edit("set", site, span, over.mean(), where)


def add(site: Site | str, span: Span | str, vector: Values, scale: float = 1.0, where: Where = EVERYWHERE) -> Edit:
    """Steer: add `scale` times a vector."""
    return _edit("add", site, span, torch.as_tensor(vector) * scale, where)


def scale(site: Site | str, span: Span | str, factor: float, where: Where = EVERYWHERE) -> Edit:
    """Multiply by a number."""
    return _edit("scale", site, span, torch.tensor(float(factor)), where)


def noise(site: Site | str, span: Span | str, std: float, seed: int = 0, where: Where = EVERYWHERE) -> Edit:
    """Add seeded Gaussian noise of standard deviation `std`; the same in every run with the same batch."""
    if not std >= 0:
        raise EditError(f"noise has a standard deviation of 0 or more, got {std}")
    return _edit("noise", site, span, torch.tensor(float(std)), where, seed)


def project_out(site: Site | str, span: Span | str, direction: Direction | Values, where: Where = EVERYWHERE) -> Edit:
    """Remove the component along a direction (normalised here)."""
    vector = torch.as_tensor(direction.vector if isinstance(direction, Direction) else direction)
    norm = vector.norm()
    if float(norm) == 0:
        raise EditError("cannot project out the zero vector")
    return _edit("project_out", site, span, vector / norm, where)


def steer(direction: Direction, span: Span | str = "all", *, doses: float = 1.0, where: Where = EVERYWHERE) -> Edit:
    """Add a direction at its own site; one dose is the length the direction had in the data."""
    if not isinstance(direction, Direction):
        raise EditError(f"steer takes a Direction, got {type(direction).__name__}; a search's result holds one in `.direction`")
    return add(direction.site, span, torch.from_numpy(direction.vector), doses * direction.norm, where)
