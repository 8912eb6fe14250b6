"""do(mediator := value): edits, features, execution, replay, attention, low-rank adapters."""

from mediant.interventions.edits import Activation, Edit, Where, add, mean, noise, project_out, scale, set_to, steer, swap, zero
from mediant.interventions.execute import Active, Output, edit, run
from mediant.interventions.features import PCA, Featurizer, Rotation
from mediant.interventions.firings import Firing
from mediant.interventions.look import Live, Look, Schedule
from mediant.interventions.looking import looking
from mediant.interventions.replay import Recording, branch, record, replay

__all__ = [
    "PCA",
    "Activation",
    "Active",
    "Edit",
    "Featurizer",
    "Firing",
    "Live",
    "Look",
    "Output",
    "Recording",
    "Rotation",
    "Schedule",
    "Where",
    "add",
    "branch",
    "edit",
    "looking",
    "mean",
    "noise",
    "project_out",
    "record",
    "replay",
    "run",
    "scale",
    "set_to",
    "steer",
    "swap",
    "zero",
]
