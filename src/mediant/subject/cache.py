"""What the library calls a key/value cache, which depends on its version and on the module.

model(input_ids=ids, **{cache_name(model): cache})
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

# `cache` since transformers 5.24, the others before.
NAMES = ("cache", "past_key_values", "layer_past")


def cache_name(module: nn.Module) -> str:
    """The argument by which a module is given its cache."""
    takes = inspect.signature(type(module).forward).parameters
    return next(name for name in NAMES if name in takes)


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call; None where there is none."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)
