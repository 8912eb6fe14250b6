"""The floor under a row: its least arithmetic and its least bytes, at the rates this machine shows in the same run.

A multiply-add counts as two. Norms, rotations and activations are left out, and a row's inputs are taken to be in place, so
floors are too low rather than too high.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mediant.subject.families.family import Shape

FLOAT = 4


@dataclass(frozen=True)
class Machine:
    """Measured rates of one thread: floating-point operations and bytes per second."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """Least work of a row."""

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, machine: Machine) -> float:
        """The larger of what arithmetic and what memory takes."""
        return max(self.flops / machine.flops, self.bytes / machine.bytes)


def measured(*, quick: bool = False) -> Machine:
    """Rates of matrix products in float32 (the best of several shapes) and of reading memory."""
    times = 3 if quick else 9
    rates = []
    for n, k, m in ((1024, 1024, 1024), (512, 576, 1536), (512, 1536, 576)):
        a, b, out = torch.randn(n, k), torch.randn(k, m), torch.empty(n, m)
        rates.append(2 * n * k * m / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), times))
    # As a model reads its weights: once, as the matrix of a product with one column.
    wide, column = torch.randn(16384, 8192), torch.randn(8192)
    reading = wide.numel() * FLOAT / _best(lambda: torch.mv(wide, column), times)
    return Machine(max(rates), reading)


def _best(call: Callable[[], Tensor], times: int) -> float:
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def layer_weights(shape: Shape) -> int:
    """Numbers in one layer's matrices."""
    d, z, kv = shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    return 2 * d * z + 2 * d * kv + mlp_weights(shape)


def mlp_weights(shape: Shape) -> int:
    """Numbers in one gated MLP's three matrices."""
    return 3 * shape.d_model * shape.d_mlp


def layer_flops(shape: Shape, columns: range) -> int:
    """One layer of one row for some columns: matrices, and attention of each column to all up to itself."""
    attention = sum(4 * (column + 1) * shape.n_heads * shape.d_head for column in columns)
    return 2 * layer_weights(shape) * len(columns) + attention


def forward(shape: Shape, rows: int, columns: range, *, layers: int | None = None, logits: bool = True) -> Cost:
    """Some columns of some rows through the last `layers` layers, logits of the last column; every weight is read once."""
    layers = shape.n_layers if layers is None else layers
    head = shape.d_model * shape.n_vocab if logits else 0
    flops = rows * (layers * layer_flops(shape, columns) + 2 * head)
    return Cost(flops, FLOAT * (layers * layer_weights(shape) + head))
