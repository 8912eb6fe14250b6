"""A `Direction` is a unit vector at a site that stands for a concept.

>>> import numpy as np
>>> d = Direction.from_vector(np.array([3.0, 4.0]), Site("resid_post", 3), name="polite")
>>> d.norm, d.vector.tolist()
(5.0, [0.6000000238418579, 0.800000011920929])

The length found in the data is kept beside it, so that "one standard dose" has a meaning. Files are
safetensors: plain transformers code can read the vector and add it (docs/how-to/directions.md).
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mediant.core.errors import EditError, MediantError, RunError
from mediant.core.site import Site


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector (float32, shape `(d,)`) at a site.

    Attributes:
        norm: length of the vector before normalising, in units of the site's activations.
        meta: how it was found (method, task, n, accuracy on held-out items, model hash).
    """

    vector: npt.NDArray[np.float32]
    site: Site
    norm: float = 1.0
    name: str = ""
    meta: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_vector(cls, vector: npt.ArrayLike, site: Site, *, name: str = "", meta: dict[str, str] | None = None) -> "Direction":
        """Normalise `vector`.

        Raises:
            EditError: the vector is zero, not finite, or not one-dimensional.
        """
        array = np.asarray(vector, dtype=np.float32)
        norm = float(np.linalg.norm(array))
        if array.ndim != 1 or not np.isfinite(norm) or norm == 0:
            raise EditError(f"a direction needs a finite non-zero vector, got shape {array.shape} with norm {norm}")
        return cls(array / norm, site, norm, name, dict(meta or {}))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file: tensor `vector`, and the rest as its metadata."""
        from safetensors.numpy import save_file

        # One key only: safetensors writes several in random order, and equal directions should be equal files.
        fields = {"site": str(self.site), "norm": self.norm, "name": self.name, "meta": self.meta}
        save_file({"vector": self.vector}, str(path), {"direction": json.dumps(fields, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> "Direction":
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                fields, vector = json.loads(file.metadata()["direction"]), file.get_tensor("vector")
            found = cls(vector, Site.parse(fields["site"]), float(fields["norm"]), str(fields["name"]), dict(fields["meta"]))
            found.check()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, MediantError) as error:
            raise RunError(f"{path} is not a saved direction: {error}") from error
        return found

    def check(self) -> None:
        """Raise `EditError` unless the vector is a float32 unit vector and the norm a positive number."""
        unit = self.vector.ndim == 1 and self.vector.dtype == np.float32 and abs(float(np.linalg.norm(self.vector)) - 1) < 1e-3
        if not unit or not (math.isfinite(self.norm) and self.norm > 0):
            raise EditError(
                f"expected a float32 unit vector and a positive norm, got {self.vector.dtype} {self.vector.shape}, {self.norm}"
            )
