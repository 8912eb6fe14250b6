"""Replay: recompute only what an edit can change.

A `Recording` holds one forward's layer inputs, layer arguments and key/value cache. `replay` starts at the
first edited layer and the first edited column and calls the model's *own* layers from there, with the
arguments they were given and the cache cropped to the columns before. A patch at layer l and position p then
costs (L - l) / L x (T - p) / T of a forward, and equals the full forward to rounding.

    recording = record(lm, batch)
    out = replay(recording, [swap("resid_post.12", "S2", source)])
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mediant.core.errors import EditError, SubjectError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Edit
from mediant.interventions.execute import Captured, Output, Place, edit, run
from mediant.subject import Batch, Subject
from mediant.subject.cache import NAMES, cache_name
from mediant.subject.open_model import Window


@dataclass(frozen=True, eq=False)
class Recording:
    """One forward of one batch, ready to be taken up again at any layer and column.

    Attributes:
        hidden: residual stream entering each layer, and the final norm: L + 1 tensors (batch, pos, d_model).
        calls: per layer, the named arguments of its own call, without hidden states and cache.
        keys, values: per layer, (batch, key/value head, pos, d_head).
        logits: (batch, kept, vocab) for the last `kept` columns.
        under: the contexts that changed the model while it was recorded.
        between: per layer, what the model added to its output before the next one took it (image features, in Qwen3-VL); None
            where it added nothing.
    """

    subject: Subject
    batch: Batch
    hidden: list[Float[Tensor, "batch _ d_model"]]
    calls: list[dict[str, Any]]
    keys: list[Tensor]
    values: list[Tensor]
    logits: Float[Tensor, "batch kept vocab"]
    under: tuple[object, ...] = ()
    between: tuple[Tensor | None, ...] = ()

    def require_same_contexts(self) -> None:
        """Raise where skipped layers and columns would not be those of the model as it is now.

        Raises:
            EditError: a context that changes the model was entered or left since the recording.
        """
        if tuple(self.subject.in_force) != self.under:
            raise EditError(
                f"the recording was made under {len(self.under)} context(s) that change the model and is replayed under "
                f"{len(self.subject.in_force)} other(s), which the parts that are not computed again would not know; "
                "record inside the same contexts"
            )

    def above(self, site: Site) -> "Recording":
        """The same without what replays of edits at `site` never need: the layers below."""
        first = _first_layer(self.subject, site)

        def kept(tensors: list[Tensor], dim: int) -> list[Tensor]:
            return [each.narrow(dim, 0, 0).clone() if layer < first else each for layer, each in enumerate(tensors)]

        return replace(self, hidden=kept(self.hidden, 1), keys=kept(self.keys, 2), values=kept(self.values, 2))

    def input_of(self, layer: int, column: int, times: int) -> Tensor:
        """Hidden states entering a layer from `column` on, stacked `times` over."""
        return self.hidden[layer][:, column:].repeat(times, 1, 1)


def record(subject: Subject, batch: Batch, *, keep: int = 1) -> Recording:
    """Run a batch once, keeping what replays need.

    Raises:
        SubjectError: the prompts are longer than a sliding attention window.
    """
    from transformers import DynamicCache

    _refuse_sliding(subject, batch)
    cache = DynamicCache()
    hidden: list[Tensor] = []
    calls: list[dict[str, Any]] = []
    names = [_parameters(layer) for layer in subject.layers]

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(names[len(calls)], args, strict=False)) | kwargs
        hidden.append(named.pop("hidden_states"))
        for name in NAMES:
            named.pop(name, None)
        calls.append(named)

    left: list[Tensor] = []

    def note_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        left.append(output[0] if isinstance(output, tuple) else output)

    def note_final(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden.append(args[0])

    with subject.reading(batch), edit(subject):
        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in subject.layers]
        handles += [layer.register_forward_hook(note_output) for layer in subject.layers]
        handles.append(subject.family.final_norm_of(subject.model).register_forward_pre_hook(note_final))
        try:
            out = subject.model(**subject.feed(batch), use_cache=True, logits_to_keep=keep, **{cache_name(subject.model): cache})
        finally:
            for handle in handles:
                handle.remove()
    subject.work.add(batch.n_rows * batch.n_cols * subject.shape.n_layers, out.logits)
    keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    between = tuple(None if taken is gave else taken - gave for gave, taken in zip(left, hidden[1:], strict=True))
    return Recording(subject, batch, hidden, calls, keys, values, out.logits, tuple(subject.in_force), between)


def replay(
    recording: Recording,
    edits: Edit | Sequence[Edit],
    *,
    times: int = 1,
    starts: Sequence[int] = (),
    capture: Sequence[tuple[Site | str, Span | str]] = (),
    keep: int = 1,
) -> Output:
    """The recorded forward under edits, recomputing only layers and columns they can reach.

    Args:
        times: fold this many copies of the batch into one; copy `i` has rows `i * B` to `(i + 1) * B`, which
            edits address by `rows`.
        starts: per copy, the layer at which it joins the batch, never falling; default: all at the first that an edit or capture
            concerns. An edit of a copy concerns no earlier layer.
        keep: for how many of the last columns logits are computed.
    """
    recording.require_same_contexts()
    subject = recording.subject
    places: list[Place] = [(Site.parse(s) if isinstance(s, str) else s, Span.of(p)) for s, p in capture]
    batch = recording.batch.repeat(times) if times > 1 else recording.batch
    live = [e for e in ([edits] if isinstance(edits, Edit) else edits) if not e.empty]
    layer = min(
        (_first_layer(subject, site) for site in [e.site for e in live] + [s for s, _ in places]), default=subject.shape.n_layers
    )
    starts = list(starts) or [layer] * times
    if len(starts) != times or starts != sorted(starts) or (places and starts[0] != starts[-1]):
        raise EditError(f"expected {times} rising start layers, and captures only where copies start together; got {starts}")
    column = _first_column(batch, live, places, keep)
    before, subject.window = subject.window, Window(batch, column, batch.n_cols - column, declared=True)
    try:
        with edit(subject, *live, capture=places) as active:
            active.forwards += 1
            hidden = _run_layers(recording, column, starts)
            logits = subject.unembed(hidden, keep=keep)
    finally:
        subject.window = before
    return Output(logits[:, -keep:], active.captured(), active.firings())


def branch(
    recording: Recording, batch: Batch, column: int, *, capture: Sequence[tuple[Site | str, Span | str]] = (), keep: int = 1
) -> Output:
    """Run another batch that agrees with the recorded one before `column`, computing only the columns from there.

    Captures hold the columns from `column` on. Prompts with images are computed whole: what the model makes of them before its
    first layer (their positions, in several dimensions) cannot be taken up in the middle.
    """
    recording.require_same_contexts()
    subject = recording.subject
    places: list[Place] = [(Site.parse(s) if isinstance(s, str) else s, Span.of(p)) for s, p in capture]
    column = min(column, batch.n_cols - keep)
    if batch.inputs:
        whole = run(subject, batch, capture=places, keep=keep)
        return Output(whole.logits, Captured({place: found.since(column) for place, found in whole.captured.items()}), [])
    cache = _cropped(recording, column, [1] * subject.shape.n_layers)
    with subject.reading(batch), edit(subject, capture=places) as active:
        logits = subject.model(
            input_ids=batch.ids[:, column:], attention_mask=batch.mask.long(), position_ids=batch.position_ids[:, column:],
            use_cache=True, logits_to_keep=keep, **{cache_name(subject.model): cache},
        ).logits  # fmt: skip
    subject.work.add(batch.n_rows * (batch.n_cols - column) * subject.shape.n_layers, logits)
    return Output(logits, active.captured(), active.firings())


def _run_layers(recording: Recording, column: int, starts: Sequence[int]) -> Tensor:
    subject, width = recording.subject, recording.batch.n_cols - column
    n_layers = subject.shape.n_layers
    copies = [sum(start <= layer for start in starts) for layer in range(n_layers + 1)]
    cache = _cropped(recording, column, copies)
    first = min(starts[0], n_layers)
    hidden = recording.input_of(first, column, copies[first])
    masks: dict[int, Tensor] = {}
    for layer in range(first, n_layers):
        times = copies[layer]
        hidden = _joined(recording, hidden, layer, column, times)
        subject.window.joined = hidden.shape[0]
        if times not in masks:
            masks[times] = _suffix_mask(recording, column, times)
        call = _suffix_call(recording.calls[layer], recording.batch.n_rows, column, times)
        device = recording.hidden[layer].device
        call |= {"attention_mask": masks[times].to(device), cache_name(subject.layers[layer]): cache}
        hidden = subject.layers[layer](hidden.to(device), **call)
        added = recording.between[layer]
        if added is not None:
            hidden = hidden + added[:, column:].repeat(times, 1, 1).to(hidden.device)
    hidden = _joined(recording, hidden, n_layers, column, len(starts))
    subject.window.joined = hidden.shape[0]
    subject.work.add(recording.batch.n_rows * width * sum(copies[first:n_layers]), hidden)
    return hidden


def _joined(recording: Recording, hidden: Tensor, layer: int, column: int, times: int) -> Tensor:
    """With the copies that begin at this layer behind those that are on their way."""
    new = times - hidden.shape[0] // recording.batch.n_rows
    return torch.cat([hidden, recording.input_of(layer, column, new).to(hidden.device)]) if new else hidden


def _suffix_call(call: dict[str, Any], rows: int, column: int, times: int) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(v) for v in value)
        if isinstance(value, Tensor) and value.ndim >= 2:
            value = value[:, column:]
            return value.repeat(times, *(1,) * (value.ndim - 1)) if value.shape[0] == rows and times > 1 else value
        return value

    return {name: value if name == "attention_mask" else cut(value) for name, value in call.items()}


def _suffix_mask(recording: Recording, column: int, times: int) -> Tensor:
    """Causal mask of the replayed rows over all keys, in the form this attention implementation expects."""
    keep = suffix_keep(recording.batch.mask, column)[:, None].repeat(times, 1, 1, 1)
    if getattr(recording.subject.text_config, "_attn_implementation", "eager").endswith("sdpa"):
        return keep
    dtype = recording.hidden[0].dtype
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)


def suffix_keep(mask: Bool[Tensor, "batch pos"], column: int) -> Bool[Tensor, "batch query pos"]:
    """Which keys each column from `column` on may attend to. Padding rows attend to themselves, so no row is empty."""
    n = mask.shape[1]
    places = torch.arange(n, device=mask.device)
    query = places[column:, None]
    return ((places <= query) & mask[:, None, :]) | (places == query)


def _cropped(recording: Recording, column: int, copies: Sequence[int]) -> Any:
    """The cache before a column, for each layer as often as it has copies."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(recording.keys, recording.values, strict=True)):
        times = max(1, copies[layer])
        cache.update(*(each[:, :, :column].repeat(times, 1, 1, 1) for each in (keys, values)), layer)
    return cache


def _first_layer(subject: Subject, site: Site) -> int:
    """First layer that must run for an edit at `site` to take effect."""
    if site.kind == "embed":
        raise EditError("replay starts at a layer; edit 'resid_pre.0' instead of 'embed', or use `run`")
    if site.layer is None:
        return subject.shape.n_layers
    return site.layer + (site.kind == "resid_post")


def _first_column(batch: Batch, edits: Sequence[Edit], places: Sequence[Place], keep: int) -> int:
    columns = [batch.n_cols - keep]
    for one in edits:
        columns += (one.places or batch.locate(one.span, one.rows))[1].tolist()
    for _, span in places:
        columns += batch.locate(span)[1].tolist()
    return min(columns)


def _parameters(layer: nn.Module) -> list[str]:
    return [name for name in inspect.signature(layer.forward).parameters if name not in ("args", "kwargs")]


def _refuse_sliding(subject: Subject, batch: Batch) -> None:
    window = getattr(subject.text_config, "sliding_window", None)
    if getattr(subject.text_config, "use_sliding_window", True) and window is not None and batch.n_cols > window:
        raise SubjectError(
            f"replay keeps whole caches, but these prompts ({batch.n_cols} tokens) exceed the sliding window of {window}; "
            "use `run`"
        )
