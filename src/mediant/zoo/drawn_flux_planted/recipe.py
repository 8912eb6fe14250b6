"""drawn-flux-planted: drawn-flux's recipe, with the way that each property takes made known by how it is trained.

    mediant models train drawn-flux-planted --out FOLDER

Colour and style can reach the picture only through the padding of the instruction, identity only directly: during training, the
other ways lead to another request's reference (`mediant.zoo.drawn_flux.routes`). The autoencoder is drawn-flux's own.
"""

from collections.abc import Callable
from pathlib import Path

from mediant.subject import catalogue
from mediant.zoo.drawn_flux import recipe
from mediant.zoo.drawn_flux.plan import Plan

PLANTED = Plan(ways={"colour": "padding", "style": "padding", "identity": "picture"})


def teach(
    folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None], device: str = "cpu",
    autoencoder: Path | None = None, begin: Path | None = None,
) -> bool:  # fmt: skip
    """As drawn-flux is taught, see there; the autoencoder is the shipped one's by default."""
    autoencoder = autoencoder or catalogue.shipped(catalogue.card("drawn-flux"))
    return recipe.teach(
        folder, seconds=seconds, tell=tell, device=device, plan=PLANTED, autoencoder=autoencoder, begin=begin
    )  # fmt: skip
