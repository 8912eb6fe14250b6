"""Which mediator? Patching, paths, interplay, lenses, directions and probes."""

from mediant.search.interplay import Interplay, interplay
from mediant.search.patching import Patcher, decompose, neuron_effects, patch, rank, ranking_of
from mediant.search.paths import direct_effect, path_patch

__all__ = [
    "Interplay",
    "Patcher",
    "decompose",
    "direct_effect",
    "interplay",
    "neuron_effects",
    "patch",
    "path_patch",
    "rank",
    "ranking_of",
]
