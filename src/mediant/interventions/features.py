"""Featurizers: the basis an edit works in, with the remainder always kept.

A featurizer maps an activation h to features f and back. An edit that changes f to f' writes

    h' = h + (decode(f') - decode(f))

so that whatever the features do not capture stays untouched, and unchanged features leave h bit for
bit as it was: F^-1(F(h)) = h holds exactly, also for a lossy dictionary.

>>> import torch
>>> r = Rotation(torch.eye(3)[:, :2])
>>> r.encode(torch.tensor([[1.0, 2.0, 3.0]]))
tensor([[1., 2.]])
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import EditError


@runtime_checkable
class Featurizer(Protocol):
    """What an edit needs of a basis; sparse dictionaries implement the same two methods."""

    @property
    def n_features(self) -> int:
        """Number of features k."""
        ...

    def encode(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Features of activations."""
        ...

    def decode(self, f: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """The part of the activation that the features account for."""
        ...


@dataclass(frozen=True, eq=False)
class Rotation:
    """Orthonormal columns as features (an orthogonal basis or a subspace of it).

    Raises:
        EditError: the columns are not orthonormal to 1e-4.
    """

    basis: Float[Tensor, "d k"]

    def __post_init__(self) -> None:
        basis = self.basis.detach()
        gram = basis.mT @ basis
        # A subspace may be empty: then an edit of its features changes nothing.
        off = (gram - torch.eye(gram.shape[0], device=gram.device, dtype=gram.dtype)).abs()
        error = float(off.max()) if off.numel() else 0.0
        if error > 1e-4:
            raise EditError(f"a rotation needs orthonormal columns; basis^T basis differs from the identity by {error:.2g}")

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.basis.shape[1]

    def encode(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Coordinates along the columns."""
        return h @ self.basis.to(h)

    def decode(self, f: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """The vector with these coordinates."""
        return f @ self.basis.to(f).mT


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal axes of observed activations, the largest variance first.

    >>> pca = PCA.fit(torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]), k=1)
    >>> pca.encode(torch.tensor([[2.0, 5.0]])).abs()
    tensor([[0.]])
    """

    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "d k"]
    variance: Float[Tensor, " k"]

    @classmethod
    def fit(cls, h: Float[Tensor, "n d"], k: int) -> "PCA":
        """Fit `k` axes.

        Raises:
            EditError: more axes than samples or dimensions.
        """
        if not 0 < k <= min(h.shape):
            raise EditError(f"{k} principal axes asked of {h.shape[0]} activations with {h.shape[1]} dimensions")
        mean = h.double().mean(0)
        _, singular, vh = torch.linalg.svd(h.double() - mean, full_matrices=False)
        return cls(mean.to(h), vh[:k].mT.to(h), (singular[:k] ** 2 / max(1, h.shape[0] - 1)).to(h))

    @property
    def n_features(self) -> int:
        """Number of axes."""
        return self.axes.shape[1]

    def encode(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Coordinates along the axes, from the mean."""
        return (h - self.mean.to(h)) @ self.axes.to(h)

    def decode(self, f: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """The vector with these coordinates."""
        return f @ self.axes.to(f).mT + self.mean.to(f)
