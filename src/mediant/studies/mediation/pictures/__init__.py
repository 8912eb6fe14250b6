"""The world of pictures: which parts of an image generator carry what is taken from a reference?

Pairs ask for one picture with two references. A set of units is given the values it has while the other picture is made, step by
step, and the share of the way that the picture moves towards the other one is what came with them.
"""

from mediant.studies.mediation.pictures.world import PICTURES

__all__ = ["PICTURES"]
