"""The drawn world: pictures whose every factor is known.

    from mediant.tasks.pictures import Scene, render
    render(Scene("fox", "jumps", "ball", "red", "beach", style="ink"), 96).pixels

Skia does the drawing: `pip install 'mediant[pictures]'`.
"""

from importlib.util import find_spec

from mediant.core.errors import TaskError

if find_spec("skia") is None:
    raise TaskError("pictures are drawn with skia-python, which is not installed: pip install 'mediant[pictures]'")

from mediant.tasks.pictures import comics
from mediant.tasks.pictures.render import Picture, render
from mediant.tasks.pictures.scene import Scene, draw_scene, every

__all__ = ["Picture", "Scene", "comics", "draw_scene", "every", "render"]
