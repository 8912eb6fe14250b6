"""A page to point with: pick a strip or upload a picture, click a panel or mark a box, and the model describes that.

    mediant demo gaze-heads

Gradio serves the page, on this machine alone. A click while the model speaks turns its heads at once. A box is marked with two
clicks on opposite corners. What the model says is untrusted and escaped.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import numpy as np

from mediant.core.errors import MediantError
from mediant.core.ranking import Ranking
from mediant.search.gaze import GazeScores
from mediant.studies.gaze_heads import method
from mediant.studies.gaze_heads.config import Config
from mediant.studies.gaze_heads.speech import Moment, Speech, shrunk
from mediant.subject.regions import Box
from mediant.subject.vision import Pixels, VisionSubject, as_pixels
from mediant.tasks import strips

COLOURS = ("#d9822b", "#2f6fde", "#2a8f4a", "#8c50b2", "#c0392b", "#1e8c8c")
# A bias of a few logits leaves the heads their view of the text; from about 20 on they see nothing but the target.
GENTLE, HARD = 3.0, 20.0
QUESTIONS = (
    "Describe the panels in any order.",
    "What is happening in this panel?",
    "Describe all panels in order.",
    "What is here?",
)
FRAME = (217, 106, 30)
_STAGE, _FRAME = 960, 5
# What the heads look at lies over the picture and lets clicks through: a picture that is replaced with every word loses some.
_CSS = """
#pictures { position: relative; }
#light { position: absolute; inset: 0; pointer-events: none; background: transparent; }
#light * { background: transparent; border: none; }
"""


@dataclass(eq=False)
class _User:
    """What one browser sees."""

    speech: Speech
    attention: Any = None
    corner: tuple[int, int] | None = None
    drawn: int = 0
    history: list[Box] = field(default_factory=list)


def rank(subject: VisionSubject, config: Config) -> Ranking:
    """Gaze heads of a model, on a few drawn strips."""
    found = strips.drawn(config.n_validation, seed=config.seed, panels=config.panels)
    seen = [method.gaze(subject, strip, config) for strip in found]
    return GazeScores(*(np.asarray([one[part] for one in seen]) for part in ("mass", "spread"))).ranking(config.score)


def page(subject: VisionSubject, ranking: Ranking, config: Config) -> Any:
    """The page, ready to be launched."""
    k = max(1, round(config.largest_share * len(ranking)))
    show = _Show(subject, ranking, config)
    with gr.Blocks(title="Gaze heads", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"## Turn the heads of {html.escape(subject.name)}\nClick a panel (or two corners of a box), then let it describe. "
            "Click elsewhere while it speaks."
        )
        with gr.Column(elem_id="pictures"):
            stage = gr.Image(label="picture", type="numpy", interactive=False, elem_id="stage", buttons=[])
            light = gr.Image(
                type="numpy", image_mode="RGBA", format="png", interactive=False, elem_id="light", buttons=[],
                show_label=False, container=False,
            )  # fmt: skip
        status = gr.Markdown("", elem_id="status")
        with gr.Row():
            draw = gr.Button("Another strip", elem_id="draw")
            upload = gr.UploadButton("Upload a picture", elem_id="upload")
            mark = gr.Radio(["panel", "box"], value="panel", label="mark a", elem_id="mark")
            panels = gr.Slider(1, 10, value=config.panels, step=1, label="panels across")
            heads = gr.Slider(0, len(ranking), value=k, step=1, label="heads turned", elem_id="heads")
            beta = gr.Slider(0.5, HARD, value=GENTLE, step=0.5, label="how hard (bias in logits)", elem_id="beta")
        question = gr.Dropdown(list(QUESTIONS), value=QUESTIONS[0], allow_custom_value=True, label="question", elem_id="question")
        with gr.Row():
            describe = gr.Button("Describe", variant="primary", elem_id="describe")
            loose = gr.Button("Let go", elem_id="loose")
            stop = gr.Button("Stop", elem_id="stop")
        # A line of its own: what a click did must stay readable while words come in.
        speaking = gr.Markdown("", elem_id="speaking")
        said = gr.HTML("", label="what it says", elem_id="said")
        everything = [stage, light, status, speaking, said]
        blocks.load(show.draw, None, everything)
        draw.click(show.draw, None, everything)
        upload.upload(show.upload, upload, everything)
        stage.select(show.click, [mark, panels], [stage, light, status])
        loose.click(show.loose, None, [stage, light, status])
        stop.click(show.stop, None, None)
        describe.click(show.describe, [question, heads, beta], [light, speaking, said])
    return blocks


class _Show:
    """What the page's controls do. What a click did is said in one line, how the description goes in another."""

    def __init__(self, subject: VisionSubject, ranking: Ranking, config: Config) -> None:
        self.subject, self.ranking, self.config = subject, ranking, config
        self.users: dict[str, _User] = {}

    def user(self, request: Any) -> _User:
        """The state of one browser tab."""
        key = str(getattr(request, "session_hash", None) or "")
        return self.users.setdefault(key, _User(Speech(self.subject, ())))

    def draw(self, request: gr.Request) -> tuple[Any, Any, str, str, str]:
        """Another strip of the drawn world."""
        user = self.user(request)
        user.drawn += 1
        strip = strips.drawn(1, seed=1000 + user.drawn, split="heldout", panels=self.config.panels)[0]
        return self._shown(user, strip.pixels, "Click a panel.")

    def upload(self, path: str, request: gr.Request) -> tuple[Any, Any, str, str, str]:
        """A picture of the user's own."""
        user = self.user(request)
        try:
            pixels = as_pixels(path)
            small = shrunk(pixels)
            self.subject.look([small], ["?"])
        except MediantError as error:
            return *self._pictures(user), _problem(error), "", ""
        note = f" It was scaled down from {pixels.shape[1]} x {pixels.shape[0]} pixels." if small is not pixels else ""
        return self._shown(user, small, f"Your picture.{note} Click where it shall look.")

    def click(self, mark: str, panels: float, event: gr.SelectData, request: gr.Request) -> tuple[Any, Any, str]:
        """A panel, or the corner of a box."""
        user = self.user(request)
        pixels = user.speech.pixels
        if pixels is None:
            return None, None, "There is no picture yet."
        scale = _scale(pixels)
        x, y = (int(value / scale) for value in event.index)
        if mark == "panel":
            wide = pixels.shape[1] / int(panels)
            k = min(int(panels) - 1, int(x / wide))
            return self._turn(user, (k * wide, 0.0, (k + 1) * wide, float(pixels.shape[0])), f"Looking at panel {k + 1}")
        if user.corner is None:
            user.corner = x, y
            return *self._pictures(user), "Now click the opposite corner."
        (a, b), user.corner = user.corner, None
        return self._turn(user, (float(min(a, x)), float(min(b, y)), float(max(a, x)), float(max(b, y))), "Looking at the box")

    def loose(self, request: gr.Request) -> tuple[Any, Any, str]:
        """Let the heads look where they will."""
        user = self.user(request)
        user.speech.turn_to(None)
        user.corner = None
        return *self._pictures(user), "The heads look where they will."

    def stop(self, request: gr.Request) -> None:
        """End the description, which then says so itself."""
        self.user(request).speech.stop()

    def describe(self, question: str, heads: float, beta: float, request: gr.Request) -> Iterator[tuple[Any, str, str]]:
        """Speak, token by token."""
        user = self.user(request)
        user.speech.heads, user.speech.beta = tuple(self.ranking.sites(int(heads))), float(beta)
        words = ""
        try:
            if not question.strip():
                raise MediantError("The question is empty; ask something.")
            for moment in user.speech.describe(question.strip(), self.config.panels * 14):
                words, user.attention = _spoken(moment), moment.attention
                yield self._light(user), "Speaking. Click to turn the heads.", words
            yield self._light(user), "Stopped." if user.speech.stopped else "Done.", words
        except MediantError as error:
            yield self._light(user), _problem(error), words

    def _turn(self, user: _User, box: Box, done: str) -> tuple[Any, Any, str]:
        try:
            tokens = user.speech.turn_to(box)
        except MediantError as error:
            return *self._pictures(user), _problem(error)
        return *self._pictures(user), f"{done}: {tokens} image tokens."

    def _shown(self, user: _User, pixels: Pixels, note: str) -> tuple[Any, Any, str, str, str]:
        user.speech.show(pixels)
        user.speech.turn_to(None)
        user.attention, user.corner = None, None
        return *self._pictures(user), note, "", ""

    def _pictures(self, user: _User) -> tuple[Any, Any]:
        return self._stage(user), self._light(user)

    def _stage(self, user: _User) -> Any:
        """The picture, with a frame around the region the heads are turned to."""
        pixels = user.speech.pixels
        if pixels is None:
            return None
        scale = _scale(pixels)
        big = pixels.repeat(scale, 0).repeat(scale, 1)
        if user.speech.box is not None:
            _frame(big, [round(side * scale) for side in user.speech.box], FRAME)
        return big

    def _light(self, user: _User) -> Any:
        """A shadow over what the heads do not look at, as large as the picture."""
        pixels = user.speech.pixels
        if pixels is None:
            return None
        shadow = np.zeros((*pixels.shape[:2], 4), dtype=np.uint8)
        if user.attention is not None:
            shadow[..., 3] = _shadow(pixels, self.subject.look([pixels], ["?"]).images[0].cells, user.attention)
        scale = _scale(pixels)
        big = shadow.repeat(scale, 0).repeat(scale, 1)
        if user.speech.box is not None:
            _frame(big, [round(side * scale) for side in user.speech.box], (0, 0, 0, 0))
        return big


def _scale(pixels: Pixels) -> int:
    return max(1, _STAGE // int(pixels.shape[1]))


def _shadow(pixels: Pixels, cells: Sequence[Any], attention: Any) -> Any:
    """How dark each pixel becomes, 0 where the heads look most."""
    light = np.zeros(pixels.shape[:2], dtype=np.float32)
    for cell, share in zip(cells, attention, strict=True):
        if cell.box is not None:
            left, top, right, bottom = (round(side) for side in cell.box)
            light[top:bottom, left:right] = np.maximum(light[top:bottom, left:right], share)
    return (0.55 * 255 * (1 - light / max(1e-9, float(light.max())))).astype(np.uint8)


def _frame(pixels: Pixels, box: Sequence[int], colour: Sequence[int]) -> None:
    left, top, right, bottom = box
    inside = pixels[top + _FRAME : bottom - _FRAME, left + _FRAME : right - _FRAME].copy()
    pixels[top:bottom, left:right] = colour
    pixels[top + _FRAME : bottom - _FRAME, left + _FRAME : right - _FRAME] = inside


def _spoken(moment: Moment) -> str:
    """Words, coloured by the turn they were said in."""
    parts = []
    for text, turn in moment.words:
        colour = f' style="color: {COLOURS[turn % len(COLOURS)]}"' if turn >= 0 else ""
        parts.append(f"<span{colour}>{html.escape(text)}</span>")
    return f'<div style="font-size: 1.15rem; line-height: 1.6">{"".join(parts)}</div>'


def _problem(error: MediantError) -> str:
    return f"**That did not work:** {html.escape(str(error))}"


def serve(
    subject: VisionSubject, config: Config, *, port: int | None = None, ranking: Ranking | None = None, ready: Any = None
) -> None:
    """Rank the heads, unless they are, and serve the page on this machine until interrupted.

    Args:
        ready: called with the page's address; the server then ends when it returns.
    """
    blocks = page(subject, ranking or rank(subject, config), config)
    _, address, _ = blocks.queue().launch(
        server_name="127.0.0.1", server_port=port, share=False, quiet=True, inbrowser=False, prevent_thread_lock=True,
        show_error=False, max_file_size="40mb", css=_CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )  # fmt: skip
    try:
        if ready is not None:
            ready(address)
        else:
            print(f"The demo is at {address} (end it with Ctrl-C).")
            blocks.block_thread()
    finally:
        blocks.close()
