"""Edits in force: `edit(subject, ...)` as a context, `run(...)` for one forward with captures.

    with edit(lm, zero("head_z.9.6", "last")) as active:
        lm.generate(batch, max_new_tokens=5)
    print(active.firings())

Hooks are laid on the touched modules only and taken away on leaving, also after an exception. Each edit
counts its firings; one that was to hit something and never did is an error. Contexts nest: the outer one's
edits come first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mediant.core.errors import EditError, EditNeverFired, OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation, Edit, Targets
from mediant.interventions.firings import Firing, FiringCount
from mediant.interventions.taps import Tap, Tokens, first_input, taps, with_first_input
from mediant.subject import Batch, Subject
from mediant.subject.open_model import OpenModel

Place = tuple[Site, Span]


class Captured(dict[Place, Activation]):
    """Activations by (site, span); both may also be looked up as text: `captured["resid_post.3", "last"]`."""

    def __missing__(self, key: Any) -> Activation:
        if isinstance(key, tuple) and len(key) == 2:
            site, span = key
            place = (Site.parse(site) if isinstance(site, str) else site, Span.of(span))
            if place in self:
                return self[place]
        known = ", ".join(f"{site} at {span}" for site, span in self) or "nothing"
        raise EditError(f"{key} was not captured; captured was {known}")


@dataclass
class _Order:
    """One edit or capture, and what came of it."""

    site: Site
    span: Span
    edit: Edit | None = None
    count: FiringCount = field(default_factory=FiringCount)
    seen: list[tuple[Tensor, Tensor, Tensor, int]] = field(default_factory=list)

    @cached_property
    def limited(self) -> bool:
        """Whether its tokens are not simply all that the span names."""
        edit = self.edit
        return edit is not None and (edit.places, edit.rows, edit.steps, edit.index) != (None,) * 4


@dataclass
class _Line:
    """An order on one of the taps of its site."""

    tap: Tap
    order: _Order


class Active:
    """The edits and captures of one context, and what came of them."""

    def __init__(self, subject: OpenModel, edits: Sequence[Edit], capture: Sequence[Place]) -> None:
        self.subject = subject
        self.forwards = 0
        self._orders = [*(_Order(e.site, e.span, e) for e in edits), *(_Order(site, span) for site, span in capture)]
        self._lines = [_Line(tap, order) for order in self._orders for tap in taps(subject, order.site)]
        self._memory: dict[nn.Module, Tensor] = {}
        # Targets of the forward in progress that do not depend on an edit, by what they depend on; and the window they hold for.
        self._shared: dict[tuple[object, ...], tuple[Targets, Tokens]] = {}
        self._shared_for: tuple[object, ...] = ()
        self._handles: list[RemovableHandle] = []

    def captured(self) -> "Captured":
        """Captured activations by (site, span), in the order of the batch."""
        result = Captured()
        for order in self._orders:
            if order.edit is None and order.seen:
                result[order.site, order.span] = _in_order(order.seen)
        return result

    def firings(self) -> list[Firing]:
        """One report per edit."""
        return [order.count.report(order.edit) for order in self._orders if order.edit is not None]

    def check(self) -> None:
        """Raise if a forward ran and an edit did not act in it.

        Raises:
            EditNeverFired: naming the edits.
        """
        edits = [(order.edit, order.count) for order in self._orders if order.edit is not None]
        silent = [edit.label for edit, count in edits if not edit.empty and not count.forwards]
        if self.forwards and silent:
            raise EditNeverFired(
                f"{len(silent)} edit(s) never fired in {self.forwards} forward(s): {'; '.join(silent[:3])}. Their spans cover "
                "none of the tokens that were run (a span of generated tokens needs `generate`; steps count them from 0)"
            )

    def attach(self) -> None:
        """Lay the hooks."""
        self.subject.check_hooks()
        self._hook(self.subject.entry, self._note_window, before=True)
        grouped: dict[tuple[nn.Module, str, str, int], list[_Line]] = {}
        for line in self._lines:
            tap = line.tap
            grouped.setdefault((tap.module, tap.side, tap.keyword, tap.member), []).append(line)
        for (module, side, *_), lines in grouped.items():
            self._hook(module, _on_input(self, lines) if side == "input" else _on_output(self, lines), before=side == "input")
        # After the edits: what is remembered is what the module really gets.
        for line in self._lines:
            partner = line.tap.partner
            if partner is not None and partner is not line.tap.module and partner not in self._memory:
                self._memory[partner] = torch.empty(0)
                self._hook(partner, self.remember, before=True)

    def detach(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._memory.clear()

    def _hook(self, module: nn.Module, function: Any, *, before: bool) -> None:
        if before:
            self._handles.append(module.register_forward_pre_hook(function, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(function, with_kwargs=True))

    def _note_window(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.subject.note_call(args, kwargs)
        self.forwards += 1

    def remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a module was given, for the sites derived from it."""
        self._memory[module] = first_input(args, kwargs)

    def pass_by(self, lines: list[_Line], raw: Tensor) -> Tensor:
        """Apply the edits and captures of one tap to the tensor that passes."""
        for line in lines:
            tap, order = line.tap, line.order
            targets, at = self._targets(line, raw)
            if not len(targets.rows):
                continue
            memory = self._memory.get(tap.partner) if tap.partner is not None else None
            old = tap.gather(raw, at, order.site.head, memory)
            if tap.keeps_changes:
                old = old + self._changes(line, at)
            if order.edit is None:
                # Whatever runs later may write into a view.
                kept = old.clone() if at.whole and tap.derive is None else old
                order.seen.append((kept, targets.rows, targets.cols, self._call))
                continue
            new = order.edit.apply(old, targets)
            raw = tap.scatter(raw, at, order.site.head, old, new, memory)
            if tap.keeps_changes:
                self._note_change(line, raw, at, new - old)
            order.count.add(old, new, targets.steps)
        return raw

    @property
    def _call(self) -> int:
        """Number of the forward in progress, where each makes a step of its own; language models have one timeline."""
        window = self.subject.window
        return 0 if window.step is None else 2 * window.step + window.guidance

    def _changes(self, line: _Line, at: Tokens) -> Tensor | float:
        """What was written to this part of the output before, in this forward."""
        written = self.subject.window.written.get(line.tap.module)
        if written is None:
            return 0.0
        found = written[at.rows, at.cols]
        return found if line.order.site.head is None else found[:, line.order.site.head]

    def _note_change(self, line: _Line, raw: Tensor, at: Tokens, change: Tensor) -> None:
        n_heads = self.subject.shape.n_heads
        written = self.subject.window.written.setdefault(line.tap.module, raw.new_zeros(*raw.shape[:2], n_heads, raw.shape[2]))
        if line.order.site.head is None:
            written[at.rows, at.cols] += change
        else:
            written[at.rows, at.cols, line.order.site.head] += change

    def _targets(self, line: _Line, raw: Tensor) -> tuple[Targets, Tokens]:
        """The tokens of this forward that a line concerns; found once for all that name a span and no more."""
        window = self.subject.window
        if line.order.limited or (line.order.edit is not None and window.step is not None):
            return self._placed(line, raw)
        now = (window.batch, window.offset, window.width, window.step, window.n_text, raw.shape[0])
        if now != self._shared_for:
            self._shared, self._shared_for = {}, now
        key = (line.order.span, line.tap.stream, raw.shape[1], raw.device)
        if key not in self._shared:
            self._shared[key] = self._placed(line, raw)
        return self._shared[key]

    def _placed(self, line: _Line, raw: Tensor) -> tuple[Targets, Tokens]:
        """The same, found anew."""
        targets = self._located(line, raw)
        first, _ = self.subject.window.part(line.tap.stream)
        return targets, Tokens(targets.rows, targets.cols - first, raw)

    def _located(self, line: _Line, raw: Tensor) -> Targets:
        window = self.subject.window
        batch = window.batch
        assert batch is not None  # noqa: S101 - noted by the base module's hook or by replay
        n_rows = batch.n_rows if window.joined is None else window.joined
        if raw.shape[0] != n_rows:
            raise EditError(
                f"a forward ran on {raw.shape[0]} rows, the declared batch has {n_rows}; beams and several return "
                "sequences are not supported under edits"
            )
        edit = line.order.edit
        wrong = [row for row in (edit.rows or () if edit else ()) if not 0 <= row < batch.n_rows]
        if edit is not None and wrong:
            raise OutOfRange(f"{edit.label}: rows {wrong[:5]} do not exist, this batch has rows 0 to {batch.n_rows - 1}")
        rows, cols = edit.places if edit and edit.places else batch.locate(line.order.span, edit.rows if edit else None)
        total, steps = len(rows), frozenset[int]()
        if window.step is not None:
            steps = frozenset({window.step})
            if edit is not None and (edit.empty or not self._scheduled(edit, window.step) or not self._guided(edit)):
                rows, cols = rows[:0], cols[:0]
        elif edit is not None and (edit.steps is not None or edit.empty):
            rows, cols = rows[:0], cols[:0]
        grows = (
            window.step is None
            and line.order.span.name in ("all", "generated")
            and (edit is None or not (edit.places or edit.empty))
        )
        if grows and window.offset + window.width > batch.n_cols:
            first = max(batch.n_cols, window.offset)
            wanted = [c for c in range(first, window.offset + window.width) if self._scheduled(edit, c - batch.n_cols)]
            steps = frozenset(c - batch.n_cols for c in wanted)
            which = list(range(batch.n_rows)) if edit is None or edit.rows is None else list(edit.rows)
            extra = torch.tensor([(r, c) for r in which for c in wanted], dtype=torch.long, device=rows.device).reshape(-1, 2)
            rows, cols = torch.cat([rows, extra[:, 0]]), torch.cat([cols, extra[:, 1]])
            total = len(rows)
        first, width = window.part(line.tap.stream)
        inside = (cols >= first) & (cols < first + width) & (rows < n_rows)
        rows, cols = rows[inside], cols[inside]
        positions = cols - torch.tensor(batch.start, device=cols.device)[rows]
        prompts = rows % (batch.n_rows // batch.copies)
        return Targets(rows, cols, prompts, positions, torch.nonzero(inside).flatten(), total, steps)

    def _guided(self, edit: Edit) -> bool:
        return edit.guidance is None or edit.guidance == self.subject.window.guidance

    @staticmethod
    def _scheduled(edit: Edit | None, step: int) -> bool:
        return edit is None or edit.steps is None or step in edit.steps


def _in_order(seen: list[tuple[Tensor, Tensor, Tensor, int]]) -> Activation:
    """By call, row, then column. Without a cache every forward sees the earlier tokens again; each is kept once, as last seen."""
    if len(seen) == 1 and not seen[0][3]:
        values, rows, cols, _ = seen[0]
        key = rows * (int(cols.max()) + 1) + cols
        if bool((key[1:] > key[:-1]).all()):
            return Activation(values, rows, cols)
    values, rows, cols = (torch.cat(parts) for parts in zip(*(each[:3] for each in seen), strict=True))
    calls = torch.cat([torch.full_like(each[1], each[3]) for each in seen])
    key = ((calls * (int(rows.max()) + 1) + rows) * (int(cols.max()) + 1) + cols).flip(0)
    _, first = np.unique(key.cpu().numpy(), return_index=True)
    order = len(key) - 1 - torch.from_numpy(first)
    kept = order.to(rows.device)
    return Activation(values[order.to(values.device)], rows[kept], cols[kept], calls[kept] if int(calls.max()) else None)


def _on_input(active: Active, lines: list[_Line]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keyword = lines[0].tap.keyword
        return with_first_input(args, kwargs, active.pass_by(lines, first_input(args, kwargs, keyword)), keyword)

    return hook


def _on_output(active: Active, lines: list[_Line]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if any(line.tap.partner is module for line in lines):
            active.remember(module, args, kwargs)
        if isinstance(output, tuple):
            member = lines[0].tap.member
            return (*output[:member], active.pass_by(lines, output[member]), *output[member + 1 :])
        return active.pass_by(lines, output)

    return hook


@contextmanager
def edit(subject: OpenModel, *edits: Edit | Sequence[Edit], capture: Sequence[Place] = ()) -> Iterator[Active]:
    """Put edits, given singly or as lists, in force for every forward inside the block, whoever calls it.

    Raises:
        EditNeverFired: forwards ran inside the block and an edit with a target touched nothing.
    """
    active = Active(subject, [e for one in edits for e in ([one] if isinstance(one, Edit) else one)], capture)
    window = subject.window
    before = replace(window)
    active.attach()
    changing = [active] if edits else []
    subject.in_force += changing
    try:
        yield active
    finally:
        active.detach()
        subject.in_force = [one for one in subject.in_force if one not in changing]
        window.batch, window.offset, window.width = before.batch, before.offset, before.width
    active.check()


@dataclass(frozen=True, eq=False)
class Output:
    """What a run gave.

    Attributes:
        logits: shape (batch, kept, vocab), for the last `kept` columns.
        captured: activations by (site, span).
        firings: one report per edit.
    """

    logits: Float[Tensor, "batch kept vocab"]
    captured: Captured
    firings: list[Firing]

    @property
    def last(self) -> Float[Tensor, "batch vocab"]:
        """Logits at the last column."""
        return self.logits[:, -1]


def run(
    subject: Subject,
    batch: Batch,
    edits: Edit | Sequence[Edit] = (),
    *,
    capture: Sequence[tuple[Site | str, Span | str]] = (),
    keep: int = 1,
) -> Output:
    """One forward over a batch, with edits and captures.

    Args:
        keep: for how many of the last columns logits are computed; left-padded prompts all end in the last one.

    Gradients flow if the caller's context allows them.
    """
    places = [(Site.parse(s) if isinstance(s, str) else s, Span.of(p)) for s, p in capture]
    edits = [edits] if isinstance(edits, Edit) else edits
    with subject.reading(batch):
        if not edits and not places:
            return Output(_forward(subject, batch, keep), Captured(), [])
        with edit(subject, *edits, capture=places) as active:
            logits = _forward(subject, batch, keep)
    return Output(logits, active.captured(), active.firings())


def _forward(subject: Subject, batch: Batch, keep: int) -> Tensor:
    logits: Tensor = subject.model(**subject.feed(batch), use_cache=False, logits_to_keep=keep).logits
    subject.work.add(batch.n_rows * batch.n_cols * subject.shape.n_layers, logits)
    return logits
