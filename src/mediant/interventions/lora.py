"""Low-rank weight edits (Hu et al. 2021) as named controls: put in force, scaled and summed, never merged.

    tone = Adapter.create(lm, ("q_proj", "v_proj"), rank=4, name="tone")     # B = 0: changes nothing yet
    with applied(lm, [(tone, 0.5), (Adapter.load("adapters/facts"), 1.0)]) as active:
        run(lm, batch)
    print(active.calls)

Hooks add `scale * alpha / rank * B(A(x))` to the outputs of linear modules, which is what the weights
`W + scale * alpha / rank * B A` would give. The model itself is not touched: nothing is wrapped, and after
the context nothing is left. Edits of a projection's output see the adapted output, in whichever order the
contexts were entered; `head_result` sites are read through the model's own output projection and so leave
out an adapter's share of it. Folders are in the format of peft, to and from which they can be taken.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mediant.core.errors import EditError, EditNeverFired, OutOfRange, SubjectError, unknown
from mediant.interventions import adapter_files
from mediant.subject import Subject


@dataclass(frozen=True, eq=False)
class LowRank:
    """The two factors of one module's weight change."""

    a: Float[Tensor, "rank d_in"]
    b: Float[Tensor, "d_out rank"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank change of some of a model's linear modules.

    Attributes:
        name: for reports; adapters that are applied together have different names.
        alpha: the change of a weight is `alpha / rank * B A`.
        matrices: factors by module path, e.g. `model.layers.0.self_attn.q_proj`; float32 leaves that require grad.
        fan_in_fan_out: whether the model stores these weights as (in, out), like GPT-2; a note for peft only.

    Raises:
        EditError: no module, or factors that do not have this rank.
    """

    name: str
    rank: int
    alpha: float | int
    matrices: Mapping[str, LowRank]
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        if not self.matrices:
            raise EditError(f"adapter {self.name!r} changes no module; name at least one target")
        for path, m in self.matrices.items():
            if not m.a.shape[0] == m.b.shape[1] == self.rank:
                raise EditError(
                    f"adapter {self.name!r}: expected A (rank, in) and B (out, rank) with rank {self.rank} at {path}, "
                    f"got {tuple(m.a.shape)} and {tuple(m.b.shape)}"
                )

    @classmethod
    def create(
        cls,
        subject: Subject,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        rank: int = 4,
        alpha: float | int = 8,
        seed: int = 0,
        layers: Sequence[int] | None = None,
        *,
        name: str = "adapter",
    ) -> "Adapter":
        """A fresh adapter that changes nothing: A is random (Kaiming uniform), B is zero.

        Args:
            targets: ends of module paths, e.g. `q_proj` (in every layer) or `layers.3.mlp.down_proj`.
            layers: transformer blocks to stay within; None means the whole model.

        Raises:
            UnknownName: a target names no linear module there.
            OutOfRange: a rank below 1, or a layer the subject does not have.
        """
        if rank < 1:
            raise OutOfRange(f"an adapter needs a rank of at least 1, got {rank}")
        chosen = _chosen(subject, targets, layers)
        generator = torch.Generator().manual_seed(seed)
        matrices = {}
        for path, module in chosen.items():
            d_out, d_in = _sizes(module)
            a = torch.empty(rank, d_in)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            device = module.get_parameter("weight").device
            matrices[path] = LowRank(_leaf(a, device), _leaf(torch.zeros(d_out, rank), device))
        return cls(name, rank, alpha, matrices, not all(isinstance(module, nn.Linear) for module in chosen.values()))

    def parameters(self) -> dict[str, Tensor]:
        """All factors by name, to be trained in place."""
        return {f"{path}.lora_{x}": t for path, m in self.matrices.items() for x, t in (("A", m.a), ("B", m.b))}

    def delta(self, path: str) -> Float[Tensor, "d_out d_in"]:
        """The dense change of one module's weight at scale 1; GPT-2's weights are stored as its transpose.

        Raises:
            UnknownName: the adapter does not change this module.
        """
        if path not in self.matrices:
            raise unknown("module", path, self.matrices)
        return self.alpha / self.rank * (self.matrices[path].b @ self.matrices[path].a)

    def save(self, folder: Path | str) -> None:
        """Write the folder that peft would write: `adapter_config.json` and `adapter_model.safetensors`."""
        factors = {path: (m.a, m.b) for path, m in self.matrices.items()}
        adapter_files.write(folder, adapter_files.Content(self.name, self.rank, self.alpha, factors, self.fan_in_fan_out))

    @classmethod
    def load(cls, folder: Path | str, *, name: str | None = None, device: torch.device | str = "cpu") -> "Adapter":
        """Read what `save` or peft wrote.

        Args:
            name: default: the name it was saved under, or else the folder's.

        Raises:
            UnsafeWeights: the weights are a pickle.
            SubjectError: no adapter there, a broken one, or one that is more than `W + alpha / rank * B A`.
        """
        found, where = adapter_files.read(folder), torch.device(device)
        matrices = {path: LowRank(_leaf(a, where), _leaf(b, where)) for path, (a, b) in found.factors.items()}
        return cls(name or found.name, found.rank, found.alpha, matrices, found.fan_in_fan_out)


# An adapter and its scale.
Scaled = tuple[Adapter, float | int]


def _leaf(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, torch.float32).requires_grad_()


def _linears(subject: Subject) -> dict[str, nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return {path: module for path, module in subject.model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Output and input width."""
    rows, columns = module.get_parameter("weight").shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def _chosen(subject: Subject, targets: Sequence[str], layers: Sequence[int] | None) -> dict[str, nn.Module]:
    candidates = _linears(subject)
    if layers is not None:
        wrong = [layer for layer in layers if not 0 <= layer < subject.shape.n_layers]
        if wrong:
            raise OutOfRange(f"layers {wrong} do not exist: this model has layers 0 to {subject.shape.n_layers - 1}")
        within = tuple(f"{subject.family.base}.{subject.family.layers}.{layer}." for layer in layers)
        candidates = {path: module for path, module in candidates.items() if path.startswith(within)}
    for target in targets:
        if not any(_ends(path, target) for path in candidates):
            names = candidates if "." in target else dict.fromkeys(path.rpartition(".")[2] for path in candidates)
            raise unknown("module", target, names, note="(adapters change linear modules)")
    return {path: module for path, module in candidates.items() if any(_ends(path, target) for target in targets)}


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


class Applied:
    """The adapters of one context; `calls` counts, by adapter, the module calls it has changed."""

    def __init__(self, subject: Subject, adapters: Sequence[Scaled]) -> None:
        self.subject = subject
        self.forwards = 0
        self.calls = {adapter.name: 0 for adapter, _ in adapters}
        self._adapters = tuple(adapters)
        self._handles: list[RemovableHandle] = []
        names = [adapter.name for adapter, _ in adapters]
        if len(self.calls) < len(names):
            raise EditError(f"adapters that are applied together need different names, got {names}")
        linears = _linears(subject)
        for adapter, scale in adapters:
            if not math.isfinite(scale):
                raise EditError(f"adapter {adapter.name!r}: expected a finite scale, got {scale}")
            _check_fit(adapter, linears)

    def attach(self) -> None:
        """Lay the hooks; an adapter at scale 0 gets none."""
        self._handles.append(self.subject.base.register_forward_pre_hook(self._count_forward))
        by_module: dict[str, list[Scaled]] = {}
        for adapter, scale in self._adapters:
            for path in adapter.matrices if scale else ():
                by_module.setdefault(path, []).append((adapter, scale))
        for path, parts in by_module.items():
            # Before all other hooks, so that edits of this output see and overrule the change.
            handle = self.subject.model.get_submodule(path).register_forward_hook(self._adding(path, parts), prepend=True)
            self._handles.append(handle)

    def detach(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self) -> None:
        """Raise if a forward ran and an adapter at a scale other than 0 changed no module's output.

        Raises:
            EditNeverFired: naming the adapters.
        """
        silent = [adapter.name for adapter, scale in self._adapters if scale and not self.calls[adapter.name]]
        if self.forwards and silent:
            raise EditNeverFired(f"adapters {silent} never fired in {self.forwards} forward(s): none of their modules was called")

    def _count_forward(self, _: nn.Module, __: object) -> None:
        self.forwards += 1

    def _adding(self, path: str, parts: Sequence[Scaled]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            total = output
            for adapter, scale in parts:
                m = adapter.matrices[path]
                wide = torch.promote_types(args[0].dtype, m.a.dtype)
                a, b = m.a.to(output.device, wide), m.b.to(output.device, wide)
                change = F.linear(F.linear(args[0].to(wide), a), b)
                total = total + scale * adapter.alpha / adapter.rank * change
                self.calls[adapter.name] += 1
            return total.to(output.dtype)

        return hook


def _check_fit(adapter: Adapter, linears: Mapping[str, nn.Module]) -> None:
    for path, m in adapter.matrices.items():
        if path not in linears:
            raise unknown("module", path, linears, note=f"(adapter {adapter.name!r} was made for another model)")
        got, expected = (m.b.shape[0], m.a.shape[1]), _sizes(linears[path])
        if got != expected:
            raise SubjectError(
                f"adapter {adapter.name!r} changes a weight of shape {got} (out, in) at {path}, this subject's is {expected}; "
                "it was made for another model"
            )


@contextmanager
def applied(subject: Subject, adapters: Sequence[Scaled]) -> Iterator[Applied]:
    """Add adapters, each times its scale, to the weights that every forward inside the block uses.

    Scale 0 is the untouched model, bit for bit. Gradients flow to the factors where the caller allows them.

    Raises:
        UnknownName, SubjectError: an adapter does not fit this subject.
        EditError: two adapters of one name, or a scale that is not finite.
        EditNeverFired: forwards ran inside the block and an adapter's modules were never called.
    """
    active = Applied(subject, adapters)
    active.attach()
    subject.in_force.append(active)
    try:
        yield active
    finally:
        active.detach()
        subject.in_force.remove(active)
    active.check()
