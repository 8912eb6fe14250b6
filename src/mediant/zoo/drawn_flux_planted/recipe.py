"""drawn-flux-planted: drawn-flux's recipe, with the way that each property takes made known by how it is trained.

    mediant models train drawn-flux-planted --out FOLDER

Colour and style can reach the picture only through the padding of the instruction, identity only directly: during training, the
other ways lead to another request's reference (`mediant.zoo.drawn_flux.routes`). The autoencoder is drawn-flux's own.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mediant.subject import catalogue
from mediant.zoo.drawn_flux import recipe
from mediant.zoo.drawn_flux.recipe import Plan

# A made-known way is learnt sooner than the model finds one for itself.
LOOP = replace(recipe.DRAWING, steps=5_000)
PLANTED = Plan(loop=LOOP, ways={"colour": "padding", "style": "padding", "identity": "picture"})


def teach(folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None]) -> bool:
    """As drawn-flux is taught, see there."""
    shipped = catalogue.shipped(catalogue.card("drawn-flux"))
    return recipe.teach(folder, seconds=seconds, tell=tell, plan=PLANTED, autoencoder=shipped)
