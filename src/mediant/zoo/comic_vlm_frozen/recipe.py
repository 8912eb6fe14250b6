"""comic-vlm-frozen: comic-vlm's recipe with a vision tower that stays as single panels made it.

    mediant models train comic-vlm-frozen --out FOLDER

Vision-language models whose vision encoder is not trained together with the language model are said to have no gaze heads.
This twin asks whether that is so: nothing but the encoder's learning differs from `mediant.zoo.comic_vlm.recipe`.
"""

from functools import partial

from mediant.zoo.comic_vlm import recipe

teach = partial(recipe.teach, frozen=True)
"""`mediant.zoo.comic_vlm.recipe.teach` with a frozen vision tower."""
