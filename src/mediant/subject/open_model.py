"""An `OpenModel` is what interventions need of a model, whatever it makes: named parts, and where its forwards are now.

Language models (`Subject`), models with eyes (`VisionSubject`) and image generators (`ImageGenerator`) are open models. Hooks lie
on the modules that their family names; spans are resolved against the batch that the window declares.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mediant.core.site import Site
from mediant.subject.batch import Batch
from mediant.subject.families.family import Shape


class Layout(Protocol):
    """What any family can say: which sites a model has."""

    @property
    def name(self) -> str:
        """The family's name."""
        ...

    def check_hooks(self) -> None:
        """Refuse to be hooked where the library would not call every part."""

    def validate(self, site: Site, shape: Shape) -> None:
        """Refuse a site this model does not have."""
        ...


@dataclass
class Window:
    """Which columns of which batch the forward in progress covers: `[offset, offset + width)`.

    `declared` says that a caller named the batch; otherwise each forward that begins at column 0
    makes its own. `written` holds what edits added to single heads' contributions in this forward: module -> (row, column,
    head, d_model). Where a model makes a picture in steps, `step` counts them from 0, and `guidance` is 0 for the pass with the
    instruction and 1 for the one without; `n_text` columns come from text, the others from images. `joined` counts the batch's
    first rows that are on their way, where the others begin at a later layer.
    """

    batch: Batch | None = None
    offset: int = 0
    width: int = 0
    declared: bool = False
    written: dict[nn.Module, Tensor] = field(default_factory=dict)
    step: int | None = None
    guidance: int = 0
    n_text: int = 0
    joined: int | None = None

    def part(self, stream: str) -> tuple[int, int]:
        """First column and number of columns of a stream: `text`, `image`, or all that the forward covers."""
        if stream == "text":
            return 0, self.n_text
        return (self.n_text, self.width - self.n_text) if stream == "image" else (self.offset, self.width)


@dataclass
class Work:
    """Work done so far, in tokens x layers; divide by a prompt's own for full forwards.

    Attributes:
        token_layers: computed forward.
        differentiated: those of them whose outcome a gradient may be taken of.
    """

    token_layers: int = 0
    differentiated: int = 0

    def add(self, token_layers: int, outcome: Tensor) -> None:
        """Count a forward."""
        self.token_layers += token_layers
        self.differentiated += token_layers if outcome.requires_grad else 0


@dataclass(eq=False, kw_only=True)
class OpenModel:
    """A model with named parts.

    The model is only ever read and hooked: no weight is folded, renamed or replaced. `in_force` lists the contexts that
    change what it computes now, outermost first.
    """

    name: str
    model: nn.Module
    family: Any
    shape: Shape
    fingerprint: str = ""
    window: Window = field(default_factory=Window)
    attending: list[Any] = field(default_factory=list)
    in_force: list[object] = field(default_factory=list)
    work: Work = field(default_factory=Work)

    @property
    def device(self) -> torch.device:
        """Where inputs go in; with `device_map` other layers may live elsewhere."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def entry(self) -> nn.Module:
        """The module whose call begins a forward."""
        raise NotImplementedError

    def note_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note which columns the forward that begins covers, from what its entry is given."""
        raise NotImplementedError

    def check_hooks(self) -> None:
        """Refuse to be hooked where the library would not call every part."""

    def validate(self, site: Site | str) -> Site:
        """The site, after checking that this model has it; text is read as `KIND.LAYER.HEAD`."""
        site = Site.parse(site) if isinstance(site, str) else site
        self.family.validate(site, self.shape)
        return site

    def heads(self) -> list[Site]:
        """Every query head as a `head_z` site."""
        return [Site("head_z", la, h) for la in range(self.shape.n_layers) for h in range(self.shape.n_heads)]

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Declare the batch that forwards inside this block run on, so spans can be resolved."""
        before, self.window = self.window, Window(batch, 0, batch.n_cols, declared=True)
        try:
            yield
        finally:
            self.window = before
