"""Point attention heads at a region, and at another one while the model is speaking.

    batch = vlm.look([image], ["Describe the panels."], regions=[{"first": box, "second": other}])
    with looking(vlm, Look(heads, Schedule(("first", "second"), starts=(0, 20)), when="decode")) as gaze:
        vlm.answers(batch, max_new_tokens=40)
    gaze.mass("second")                # share of attention each head really put there, per step

In the chosen heads a bias is added to the attention logits before the softmax, in float32: +beta on the target's tokens, -beta
on the image's other tokens. Only these heads' rows are computed anew; all else stays fused. Instead of a bias one may ask for a
share of attention, `mass`, and the bias that gives it is solved for. Rows of a batch may have different targets: a target is a
span, and each row has its own columns for it.

Source: Gandikota & Bau 2026 (arXiv 2606.14703), with beta in float32 where bfloat16 would round it to ties.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mediant.core.errors import EditError, EditNeverFired, RegionError
from mediant.core.span import Span
from mediant.interventions.attention_call import AttentionContext, Call, call_of, noted_window
from mediant.interventions.attention_function import AttentionFunction, replacing_attention
from mediant.interventions.firings import Firing
from mediant.interventions.look import Live, Look, Target
from mediant.subject import Batch, Subject

# Query rows computed at once in a long prompt: logits of so many numbers per layer at most.
_NUMBERS = 2**24


@dataclass(eq=False)
class Seen:
    """What the steered heads of one layer did in one forward.

    Attributes:
        step: decode step; -1 in the prompt, where the last row stands for all.
        turn: per row, which target was looked at; -1 for none yet.
        before, after: share of attention on the target without and with the edit, (batch, head).
        visible: how many of the target's tokens could be seen, of `wanted` in all rows.
    """

    layer: int
    step: int
    turn: tuple[int, ...]
    before: Float[Tensor, "batch head"]
    after: Float[Tensor, "batch head"]
    visible: Int[Tensor, ""]
    wanted: int

    @property
    def reach(self) -> float:
        """Share of the target's tokens that could be seen: below 1 where a sliding window hides some."""
        return int(self.visible) / self.wanted


@dataclass(frozen=True, eq=False)
class _Bias:
    """The bias of one forward: what each prompt column gets, and which rows have a target."""

    prompt: Float[Tensor, "batch col"]
    target: Bool[Tensor, "batch col"]
    live: Bool[Tensor, " batch"]
    turn: tuple[int, ...]
    n_target: int
    all_visible: Int[Tensor, ""]


@dataclass(eq=False)
class Looking:
    """A gaze in force, with what it did."""

    subject: Subject
    look: Look
    forwards: int = 0
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._outer: list[AttentionContext] = list(self.subject.attending)
        self._heads: dict[int, list[int]] = {}
        for site in self.look.heads:
            self.subject.validate(site)
            if site.kind != "head_z" or site.layer is None or site.head is None:
                raise EditError(f"gaze is turned head by head: expected sites such as head_z.3.5, got {site}")
            self._heads.setdefault(site.layer, []).append(site.head)
        self._heads = {layer: sorted(set(heads)) for layer, heads in self._heads.items()}
        self._turn: list[int] = []
        self._bias: _Bias | None = None
        self._known: tuple[Any, ...] = ()
        self._texts: dict[int, str] = {}
        self._last: list[str] = []
        self._shown: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """The chosen heads of a layer, in the order of `Seen.after`."""
        return tuple(self._heads.get(layer, ()))

    def mass(self, target: Target | None = None) -> float:
        """Mean share of attention on the target after the edit, over heads, rows and forwards (of one target's turns).

        Raises:
            EditError: nothing was steered.
        """
        turns = None if target is None else {i for i, name in enumerate(self.look.schedule.targets) if name == target}
        shares = [
            one.after[row].mean()
            for one in self.seen
            for row, turn in enumerate(one.turn)
            if turn >= 0 and (turns is None or turn in turns)
        ]
        if not shares:
            raise EditError(f"no head was turned to {target or 'any target'} yet")
        return float(torch.stack([share.cpu() for share in shares]).mean())

    def reach(self) -> dict[int, float]:
        """Per layer, the smallest share of the target's tokens that its heads could still see."""
        layers = sorted({one.layer for one in self.seen})
        return {layer: min(one.reach for one in self.seen if one.layer == layer) for layer in layers}

    def firings(self) -> list[Firing]:
        """One report per target: forwards and rows it acted in, mean change of its share of attention, steps not reached."""
        return [self._firing(i, name) for i, name in enumerate(self.look.schedule.targets)]

    def _firing(self, turn: int, name: Target) -> Firing:
        mine = [(one, [row for row, t in enumerate(one.turn) if t == turn]) for one in self.seen]
        mine = [(one, rows) for one, rows in mine if rows]
        changes = [float((one.after[rows] - one.before[rows]).mean()) for one, rows in mine]
        plan = self.look.schedule
        missed = () if mine or isinstance(plan, Live) or isinstance(plan.starts, str) else (plan.starts[turn],)
        tokens = sum(len(rows) for one, rows in mine if one.layer == mine[0][0].layer)
        label = f"look at {name} with {len(self.look.heads)} heads"
        change = sum(changes) / len(changes) if changes else 0.0
        return Firing(label, len({one.step for one, _ in mine}), tokens, change, missed)

    def check(self) -> None:
        """Raise if forwards ran and no head was ever turned.

        Raises:
            EditNeverFired: with the reason to look for.
        """
        plan = self.look.schedule
        # Of live targets only one that stood from the start is owed; a later one may come after the last token.
        owed = any(plan.turns[:1]) if isinstance(plan, Live) else bool(plan.targets)
        if self.forwards and self.look.heads and not self.seen and owed:
            where = " or ".join(map(str, plan.targets))
            raise EditNeverFired(
                f"no head was turned to {where} in {self.forwards} forward(s): the schedule starts later, or nothing was "
                "generated and the gaze acts on generated tokens only"
            )

    def note_window(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the entry module: this forward's step and each row's target."""
        noted_window(self, args, kwargs)
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self._shown.clear()
        window = self.subject.window
        assert window.batch is not None  # noqa: S101 - just noted
        if window.offset == 0 and ids.shape[1] > window.batch.n_cols and len(self.look.schedule.targets) > 1:
            raise EditError("a schedule of several targets needs a key/value cache: without one, earlier rows are computed anew")
        batch, first = window.batch, window.offset + ids.shape[1] - 1 - window.batch.n_cols
        if window.offset == 0 or len(self._turn) != batch.n_rows:
            self._turn = [0 if self._at_start() else -1] * batch.n_rows
            self._last = [""] * batch.n_rows
        self._advance(ids, first)
        turn = tuple(self._turn if first >= 0 or self.look.when == "always" else [-1] * batch.n_rows)
        if all(t < 0 for t in turn):
            self._bias, self._known = None, ()
        elif self._known[:1] != (batch,) or self._known[1:] != (turn,):
            self._bias, self._known = self._made(turn), (batch, turn)

    def _at_start(self) -> bool:
        plan = self.look.schedule
        return not isinstance(plan, Live) and (isinstance(plan.starts, str) or plan.starts[0] == 0)

    def _advance(self, ids: Tensor, step: int) -> None:
        plan = self.look.schedule
        if isinstance(plan, Live):
            now = len(plan.turns) - 1
            self._turn = [now if now >= 0 and plan.turns[now] else -1] * len(self._turn)
            return
        starts, last = plan.starts, len(plan.targets) - 1
        if step < 0:
            return
        if isinstance(starts, str):
            # The token fed now was the last one said: where it ended a sentence, the next one is about something else.
            for row, token in enumerate(ids[:, -1].tolist()):
                text = self._text_of(token)
                # The mark after a number is a list's.
                ended = text.endswith((".", "!", "?")) and not (text == "." and self._last[row].isdecimal())
                self._turn[row] = min(last, self._turn[row] + ended)
                self._last[row] = text
        else:
            now = sum(start <= step for start in starts) - 1
            self._turn = [now] * len(self._turn)

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self.subject.decode([token]).strip()
        return self._texts[token]

    def _made(self, turn: tuple[int, ...]) -> _Bias:
        """The bias on the prompt's columns for each row's present target."""
        batch = self.subject.window.batch
        assert batch is not None  # noqa: S101 - noted before
        device, plan = batch.ids.device, self.look.schedule
        target, image = (torch.zeros(batch.n_rows, batch.n_cols, dtype=torch.bool, device=device) for _ in range(2))
        for row, t in enumerate(turn):
            if t >= 0:
                target[row, plan.columns(t, row) if isinstance(plan, Live) else _columns(batch, row, plan.targets[t])] = True
                image[row, batch.columns(row, Span(self.look.image))] = True
        live = torch.tensor([t >= 0 for t in turn], device=device)
        everything = self.look.mode in ("suppress_all", "max_suppress_all")
        down = (batch.mask & live[:, None] if everything else image) & ~target
        if self.look.mode == "boost" or self.look.mass is not None:
            down = torch.zeros_like(down)
        up = target if self.look.mode in ("boost_suppress", "boost") else torch.zeros_like(target)
        prompt = self.look.beta * (up.float() - down.float())
        n_target = target.sum()
        return _Bias(prompt, target, live, turn, int(n_target), n_target)

    def __call__(
        self, plain: AttentionFunction, module: nn.Module, *tensors: Tensor | None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function while the context is open."""
        output, weights = plain(module, *tensors, **more)
        heads = self._heads.get(int(module.layer_idx))  # type: ignore[arg-type]
        if not heads or self._bias is None:
            return output, weights
        call = call_of(self.subject, module, tensors, more)
        return self._turned(call, output, heads, self._bias), weights

    def _turned(self, call: Call, output: Tensor, heads: list[int], bias: _Bias) -> Tensor:
        """The output with the chosen heads' rows computed anew, a block of rows at a time."""
        n_rows, n_queries, n_keys = call.batch.n_rows, call.query.shape[2], call.key.shape[2]
        if n_queries == 1 and not self._outer and not output.requires_grad and all(turn >= 0 for turn in bias.turn):
            return self._spoken(call, output, heads, bias)
        target, _, hit = self._at_keys(call, bias)
        block = max(1, _NUMBERS // (n_rows * len(heads) * n_keys))
        first = max(0, call.batch.n_cols - call.offset) if self.look.when == "decode" else 0
        output = output.clone() if output.requires_grad else output
        for start in range(first, n_queries, block):
            rows = torch.arange(start, min(start + block, n_queries), device=output.device)
            logits = call.logits(heads, rows)
            for context in self._outer:
                logits = context.adjust(call, heads, rows, logits)
            weights = (logits + self._added(logits, target, call)).softmax(-1)
            new = call.mixed(weights, heads).to(output.dtype)
            # Through a list of heads, assignment would go to a copy of a copy.
            part = output[:, start : start + len(rows)]
            if n_queries > 1 or not all(turn >= 0 for turn in bias.turn):
                new = torch.where(self._wanted(call, rows, bias)[:, :, None, None], new, part[:, :, heads])
            part[:, :, heads] = new
            if start + len(rows) == n_queries:
                both = torch.cat([logits[:, :, -1:].softmax(-1), weights[:, :, -1:]], 1)
                self._note(call, logits, both @ hit, target, bias)
        return output

    def _spoken(self, call: Call, output: Tensor, heads: list[int], bias: _Bias) -> Tensor:
        """What `_turned` gives for the one row of a decode step, in as few operations as there can be."""
        target, _, hit = self._at_keys(call, bias)
        logits = call.logits(heads)
        weights = torch.cat([logits, logits + self._added(logits, target, call)], 1).softmax(-1)
        for j, head in enumerate(heads, start=len(heads)):
            output[:, 0, head] = (weights[:, j].to(call.value.dtype) @ call.value[:, head // call.group])[:, 0]
        self._note(call, logits, weights @ hit, target, bias)
        return output

    def _wanted(self, call: Call, rows: Int[Tensor, " row"], bias: _Bias) -> Bool[Tensor, "batch row"]:
        """Rows to be replaced: of prompts that have a target, and no padding, whose softmax is of nothing."""
        real = torch.ones(call.batch.n_rows, len(rows), dtype=torch.bool, device=rows.device)
        columns = rows + call.offset
        inside = columns < call.batch.n_cols
        real[:, inside] = call.batch.mask[:, columns[inside]]
        return real & bias.live[:, None]

    def adjust(self, call: Call, heads: Sequence[int], rows: Tensor, logits: Tensor) -> Tensor:
        """Logits of some heads and rows with what this context adds to them."""
        mine = [j for j, head in enumerate(heads) if head in self._heads.get(call.layer, ())]
        if not mine or self._bias is None:
            return logits
        acts = self._wanted(call, rows, self._bias)
        if self.look.when == "decode":
            acts &= rows + call.offset >= call.batch.n_cols
        target = self._at_keys(call, self._bias)[0]
        added = self._added(logits[:, mine], target, call)
        logits[:, mine] += added * acts[:, None, :, None]
        return logits

    def _added(self, logits: Tensor, target: Tensor, call: Call) -> Tensor:
        """What is added to the logits, broadcast over heads and rows, or solved for in each."""
        assert self._bias is not None  # noqa: S101 - callers look first
        if self.look.mass is None:
            return self._at_keys(call, self._bias)[1]
        on = _logsumexp(logits, target[:, None, None])
        off = _logsumexp(logits, ~target[:, None, None])
        shift = math.log(self.look.mass / (1 - self.look.mass)) - (on - off)
        # Where the target cannot be seen, or nothing else can, no bias changes the share.
        return shift.masked_fill(~(on.isfinite() & off.isfinite()), 0.0) * target[:, None, None]

    def _at_keys(
        self, call: Call, bias: _Bias
    ) -> tuple[Bool[Tensor, "batch key"], Float[Tensor, "batch 1 1 key"], Float[Tensor, "batch 1 key 1"]]:
        """Target, bias, and the target as numbers, at this call's keys; layers that see the same keys share them."""
        n_keys, first = call.key.shape[2], call.key_offset
        if (n_keys, first) not in self._shown:
            target, added = (_padded(values[:, first : first + n_keys], n_keys) for values in (bias.target, bias.prompt))
            if self.look.mode == "max_suppress_all":
                said = torch.arange(n_keys, device=added.device) + first >= call.batch.n_cols
                added = added - self.look.beta * (said & bias.live[:, None])
            self._shown[n_keys, first] = target, added[:, None, None], target.to(added.dtype)[:, None, :, None]
        return self._shown[n_keys, first]

    def _note(self, call: Call, logits: Tensor, masses: Tensor, target: Tensor, bias: _Bias) -> None:
        """Keep the last row's shares of attention on the target, `masses` (batch, without then with the edit, 1, 1)."""
        step = call.offset + call.query.shape[2] - 1 - call.batch.n_cols
        before, after = masses.detach()[:, :, 0, 0].chunk(2, 1)
        # Keys may be masked as well as dropped, and heads of a layer see the same ones. Nothing is read off the device here.
        hidden = call.mask is not None or call.key_offset > 0
        visible = (target & logits[:, 0, -1].isfinite()).sum() if hidden else bias.all_visible
        self.seen.append(Seen(call.layer, step, bias.turn, before, after, visible, bias.n_target))


def _columns(batch: Batch, row: int, target: Target) -> Sequence[int]:
    """Columns of a span, or of the image tokens in a region.

    Raises:
        RegionError: the prompt has no image, or no image token lies there.
    """
    if isinstance(target, str):
        return batch.columns(row, Span(target))
    if not batch.images:
        raise RegionError(f"prompts without images have no region {target}; name a span instead")
    return batch.images[row].within(target)


def _padded(values: Tensor, width: int) -> Tensor:
    """Values of the prompt's columns, then 0 for generated tokens."""
    return nn.functional.pad(values, (0, width - values.shape[1]))


def _logsumexp(logits: Tensor, where: Tensor) -> Tensor:
    return logits.masked_fill(~where, -torch.inf).logsumexp(-1, keepdim=True)


@contextmanager
def looking(subject: Subject, look: Look) -> Iterator[Looking]:
    """Turn heads to a target for every forward inside the block.

    Raises:
        SubjectError: the attention implementation takes no masks, or the subject has no such heads.
        EditNeverFired: forwards ran and no head was turned.
    """
    gaze = Looking(subject, look)
    if not look.heads:
        yield gaze
        return
    batch = subject.window.batch
    with replacing_attention(subject, gaze):
        handle = subject.entry.register_forward_pre_hook(gaze.note_window, with_kwargs=True)
        subject.attending.append(gaze)
        subject.in_force.append(gaze)
        try:
            yield gaze
        finally:
            subject.attending.remove(gaze)
            subject.in_force.remove(gaze)
            handle.remove()
            subject.window.batch = batch
    gaze.check()
