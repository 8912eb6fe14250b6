"""Put a function of ours where a model computes attention, for as long as a block lasts.

    with replacing_attention(subject, attend):      # attend(plain, module, query, key, value, mask, **kwargs)
        run(subject, batch)

transformers looks the function up by name at every call, so a new name in its registry and in the config is all it
takes, and both are taken back on leaving. `plain` is the function the model would have called.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mediant.core.errors import SubjectError
from mediant.subject import Subject

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
CLOSED = float("-inf")


@contextmanager
def replacing_attention(subject: Subject, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """Call `attend` wherever the model computes attention.

    Raises:
        SubjectError: the attention implementation takes no masks.
    """
    config: Any = subject.text_config
    before = config._attn_implementation
    name = _install(before, attend)
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
        _uninstall(name)


def attention_logits(
    query: Float[Tensor, "batch head query d"],
    key: Float[Tensor, "batch head key d"],
    mask: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None = None,
    rows: Tensor | None = None,
    n_queries: int | None = None,
) -> Float[Tensor, "batch head query key"]:
    """Attention logits in at least float32; keys a query may not see are minus infinity.

    Args:
        mask: as transformers hands it over: additive, boolean, or None for plain causal attention.
        rows, n_queries: where only some query rows of a call are given, which ones of how many.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return logits_of(
        query.to(wide) @ key.to(wide).mT, mask, scaling=scaling, softcap=softcap, rows=rows, n_queries=n_queries or query.shape[2]
    )


def logits_of(
    scores: Float[Tensor, "batch head query key"],
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    rows: Tensor | None,
    n_queries: int,
) -> Float[Tensor, "batch head query key"]:
    """Products of queries and keys, scaled, capped and closed where a query may not see a key; see `attention_logits`."""
    scores = scores * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and n_queries == 1:
        return scores
    rows = torch.arange(scores.shape[2], device=scores.device) if rows is None else rows
    if mask is None:
        places = torch.arange(scores.shape[3], device=scores.device)
        allowed = places <= (rows + scores.shape[3] - n_queries)[:, None]
        return scores.masked_fill(~allowed, CLOSED)
    mask = mask[:, :, rows, : scores.shape[3]]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, CLOSED)
    closed = mask <= torch.finfo(mask.dtype).min / 2
    return (scores + mask.to(scores.dtype)).masked_fill(closed, CLOSED)


def _install(before: str, attend: Callable[..., Any]) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind = before.rsplit("_", 1)[-1]
    if kind not in ("sdpa", "eager"):
        raise SubjectError(
            f"attention implementation {before!r} takes no masks; load the model with attn_implementation 'sdpa' or 'eager'"
        )
    # The name ends in the kind it wraps, because masks are built by the implementation's name.
    name = f"mediant{id(attend):x}_{kind}"

    def called(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        plain = ALL_ATTENTION_FUNCTIONS.get_interface(before, _eager_of(module))
        return attend(plain, module, query, key, value, mask, **kwargs)

    AttentionInterface.register(name, called)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    return name


def _uninstall(name: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface._global_mapping.pop(name, None)
    AttentionMaskInterface._global_mapping.pop(name, None)


def _eager_of(module: nn.Module) -> AttentionFunction:
    function: AttentionFunction = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return function
