"""A `Direction` is a unit vector at a site that stands for a concept.

>>> import numpy as np
>>> d = Direction.from_vector(np.array([3.0, 4.0]), Site("resid_post", 3), name="polite")
>>> d.norm, d.vector.tolist()
(5.0, [0.6000000238418579, 0.800000011920929])

The length found in the data is kept beside it, so that "one standard dose" has a meaning. Files are
safetensors: plain transformers code can read the vector and add it (docs/how-to/directions.md).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mediant.core.errors import EditError, RunError
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

        metadata = {"site": str(self.site), "norm": repr(self.norm), "name": self.name, "meta": json.dumps(self.meta)}
        save_file({"vector": self.vector}, str(path), metadata)

    @classmethod
    def load(cls, path: Path | str) -> "Direction":
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                meta = file.metadata()
                return cls(
                    file.get_tensor("vector"),
                    Site.parse(meta["site"]),
                    float(meta["norm"]),
                    meta["name"],
                    json.loads(meta["meta"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not a saved direction: {error}") from error
