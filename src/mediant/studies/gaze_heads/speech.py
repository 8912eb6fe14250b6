"""One user's picture, the region the heads are turned to, and a description that runs while both may change.

speech = Speech(vlm, heads)
speech.show(pixels)
for moment in speech.describe("Describe the panels in any order.", 80):
    print(moment.words, moment.attention)         # after every token
    speech.turn_to((64, 0, 128, 64))              # any thread may do this, at any time
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mediant.core.errors import MediantError, RunError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention import Attending, Rows, attending
from mediant.interventions.look import BETA, Live, Look
from mediant.interventions.looking import looking
from mediant.measures.intervals import Array
from mediant.subject import Batch
from mediant.subject.regions import Box
from mediant.subject.vision import Pixels, VisionSubject

# Pictures are shown and looked at in at most so many pixels a side; the model would scale them down anyway.
LARGEST_SIDE = 1280


@dataclass(frozen=True)
class Moment:
    """What stands after a token.

    Attributes:
        words: text so far in pieces, each with the number of the turn it was said in; -1 for none.
        attention: mean attention of the heads on each image token at the last token said, (image token,).
    """

    words: tuple[tuple[str, int], ...]
    attention: Array


class Speech:
    """A picture and a model that may be asked to describe it.

    Attributes:
        heads, beta: which heads are turned, and the bias in logits, from the next description on.
        stopped: whether the last description was ended by `stop`.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, subject: VisionSubject, heads: Sequence[Site]) -> None:
        self.subject, self.heads, self.beta = subject, tuple(heads), BETA
        self.pixels: Pixels | None = None
        self.box: Box | None = None
        self._live = Live()
        self._batch: Batch | None = None
        self._stop = threading.Event()
        self.stopped = False

    def show(self, pixels: Pixels) -> None:
        """Look at another picture; nothing is marked on it yet."""
        self.stop()
        self.pixels, self.box, self._batch = pixels, None, None

    def turn_to(self, box: Box | None) -> int:
        """Turn the heads to a box, or let them go; how many image tokens it holds.

        Raises:
            RunError: there is no picture.
            RegionError: the box holds no image token.
        """
        if box is None:
            self.box = None
            self._live.turn_to()
            return 0
        batch = self._looked("?")
        columns = batch.images[0].within(box)
        self.box = box
        # The prompt's question may differ in length, but the image comes before it.
        self._live.turn_to(columns)
        return len(columns)

    def stop(self) -> None:
        """End a description that is running."""
        self.stopped = True
        self._stop.set()

    def describe(self, question: str, tokens: int) -> Iterator[Moment]:
        """Describe the picture, one moment per token.

        Raises:
            RunError: there is no picture, or another description is running.
        """
        batch = self._looked(question)
        if not self._one_at_a_time.acquire(blocking=False):
            raise RunError("another description is running; stop it, or wait until it has ended")
        try:
            self._stop.clear()
            self.stopped = False
            yield from self._said(batch, tokens)
        finally:
            self._one_at_a_time.release()

    def _said(self, batch: Batch, tokens: int) -> Iterator[Moment]:
        """Run the model on a thread of its own and hand on what it says."""
        live, told = self._live, queue.Queue[Moment | BaseException | None]()
        # A box marked before the description began stands from its first token on.
        live.turns = live.turns[-1:]
        rows = [Rows(site.layer, "all", (site.head,)) for site in self.heads if site.layer is not None and site.head is not None]

        def speak() -> None:
            words: list[tuple[str, int]] = []
            try:
                with (
                    torch.no_grad(), looking(self.subject, Look(self.heads, live, beta=self.beta)),
                    attending(self.subject, rows=rows) as seen,
                ):  # fmt: skip

                    def watch(ids: torch.Tensor) -> bool:
                        turn = len(live.turns) - 1 if live.turns and live.turns[-1] else -1
                        words.append((self._newest(ids[0].tolist()), turn))
                        told.put(Moment(tuple(words), _attention(seen, batch)))
                        return self._stop.is_set()

                    self.subject.generate(batch, max_new_tokens=tokens, watch=watch)
                told.put(None)
            except BaseException as error:
                told.put(error)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        try:
            while (moment := told.get()) is not None:
                if isinstance(moment, MediantError):
                    raise moment
                if isinstance(moment, BaseException):
                    raise RunError(f"the model stopped with an error: {moment}") from moment
                yield moment
        finally:
            # Whoever listened may have left; hooks must be gone before the next description begins.
            self._stop.set()
            thread.join()

    def _newest(self, ids: list[int]) -> str:
        """The text that the last token adds; tokens may join into one character."""
        tokenizer = self.subject.tokenizer
        before, now = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:-1], ids))
        return now[len(before) :]

    def _looked(self, question: str) -> Batch:
        if self.pixels is None:
            raise RunError("there is no picture yet; draw a strip or upload one")
        return self.subject.look([self.pixels], [question or "?"])


def _attention(seen: Attending, batch: Batch) -> Array:
    """Mean over heads of the newest row's attention on the image tokens."""
    columns = batch.columns(0, Span("image"))
    newest = [observed.parts[-1][-1, 0, columns] for observed in seen.rows if observed.parts]
    for observed in seen.rows:
        # Only the newest row is shown; keeping all of them would grow with every token.
        del observed.rows[:-1], observed.cols[:-1], observed.parts[:-1]
    found: Array = torch.stack(newest).double().mean(0).cpu().numpy() if newest else np.zeros(len(columns))
    return found


def shrunk(pixels: Pixels) -> Pixels:
    """A picture of at most 1280 pixels a side."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST_SIDE:
        return pixels
    made = Image.fromarray(pixels)
    made.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(made)
