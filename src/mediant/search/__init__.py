"""Which mediator? Patching, paths, edge attribution, circuits, interplay, lenses, directions and probes."""

from mediant.search.attribution import eap
from mediant.search.circuits import greedy, strongest
from mediant.search.directions import Found, linear_probe, mean_difference, sweep_layers
from mediant.search.exact import edge_patching, edges_in_company
from mediant.search.export import export_steering
from mediant.search.interplay import Interplay, interplay
from mediant.search.lens import direct_logit_attribution, logit_lens
from mediant.search.masks import optimise_edges
from mediant.search.patching import Patcher, decompose, neuron_effects, patch, rank, ranking_of
from mediant.search.paths import direct_effect, path_patch
from mediant.search.position_effects import position_effects

__all__ = [
    "eap",
    "edge_patching",
    "edges_in_company",
    "greedy",
    "optimise_edges",
    "position_effects",
    "strongest",
    "Found",
    "Interplay",
    "Patcher",
    "decompose",
    "direct_effect",
    "direct_logit_attribution",
    "export_steering",
    "interplay",
    "linear_probe",
    "logit_lens",
    "mean_difference",
    "neuron_effects",
    "patch",
    "path_patch",
    "rank",
    "ranking_of",
    "sweep_layers",
]
