"""Where a result comes from: model and hash, settings and what was changed, seed, versions, device, dtype.

Nothing here depends on when or how often a run was interrupted, so a resumed run gives the same bytes.
"""

import importlib.metadata
import platform
from typing import Any

from mediant.runs.folder import Manifest
from mediant.subject.open_model import OpenModel

PACKAGES = ("mediant", "torch", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def provenance(manifest: Manifest, subject: OpenModel) -> dict[str, Any]:
    """The provenance section of a result."""
    return {
        "model": subject.name,
        "model_sha256": manifest.model_fingerprint,
        "family": subject.family.name,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "device": subject.device.type,
        "preset": manifest.preset,
        "changed": manifest.changed,
        "config": manifest.config,
        "versions": manifest.versions,
    }
