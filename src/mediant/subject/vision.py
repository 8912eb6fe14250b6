"""A `VisionSubject` is a model that looks at images: the prompt is built around them, and regions become token columns.

    vlm = mediant.load("comic-vlm")
    vlm.answer(image, "What happens in the third panel?")
    batch = vlm.look([image], ["What is here?"], regions=[{"target": (64, 0, 128, 64)}])
    batch.images[0].within((64, 0, 128, 64)), batch.columns(0, Span("target"))     # the same columns

The library's own image processor prepares the pixels; the prompt is put together here, because the combined processors ask for
packages that stills do not need. An image comes as an array (height, width, 3) of uint8, as a PIL image, or as a path.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mediant.core.errors import ImageError, SubjectError, TaskError
from mediant.core.pair import Prompt
from mediant.subject.batch import Batch, Side, Tokens, collate, spans_of
from mediant.subject.families.sight import Piece, ProcessedImage, Sight
from mediant.subject.footage import Footage
from mediant.subject.regions import Box, Cell, Clip, RegionMap
from mediant.subject.subject import Subject

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Pixels = npt.NDArray[np.uint8]
# More pixels than any supported model would keep, and a guard against files that unpack to gigabytes.
MOST_PIXELS = 64_000_000
_PLAIN = "{image}\n{question}\n"


@dataclass(eq=False, kw_only=True)
class VisionSubject(Subject):
    """A subject with eyes.

    Attributes:
        image_processor: the library's, for this checkpoint.
    """

    image_processor: Any = None

    @property
    def sight(self) -> Sight:
        """How this family turns images into tokens."""
        if self.family.sight is None:
            raise SubjectError(f"family {self.family.name} has no eyes")
        return self.family.sight

    def tokenize(self, prompt: Prompt | str) -> Tokens:
        """Tokenise a prompt; one with an image is put together around it, as `look` does, and has the span "image"."""
        if isinstance(prompt, str) or prompt.image is None:
            return super().tokenize(prompt)
        image = as_pixels(prompt.image)
        pieces = self._pieces(image, self._processed([image]), 0)
        templated = self._templated(prompt.text, pieces, self.image_token_id, self.sight.placeholders)
        tokens, seen = self._prompt(templated, pieces, self.image_token_id, image.shape, "")
        text, bare = templated
        offsets = self.tokenizer(text, add_special_tokens=bare, return_offsets_mapping=True)["offset_mapping"]
        # The last time, since a template may say the like before.
        spans = spans_of(prompt, offsets, shift=text.rindex(prompt.text))
        return Tokens(tokens.ids, {"image": seen.columns, **spans}, text, pixels=image, seen=seen)

    def collate(self, items: Sequence[Tokens], *, side: Side = "left") -> Batch:
        """Pad tokenised prompts, with what the model sees of their images.

        Raises:
            TaskError: some have an image and others none.
        """
        shown = [(item.pixels, item.seen) for item in items if item.pixels is not None and item.seen is not None]
        if not shown:
            return super().collate(items, side=side)
        if len(shown) < len(items) or side != "left":
            raise TaskError(f"prompts with images go together, padded on the left; {len(shown)} of {len(items)} have one")
        outputs = self._processed([pixels for pixels, _ in shown])
        inputs = {name: self._as_input(outputs[name]) for name in self.sight.inputs if name in outputs}
        batch = self._collated(items, [seen for _, seen in shown], inputs)
        return replace(batch, pixels=tuple(pixels for pixels, _ in shown))

    def continuation_ids(self, prompt: Prompt | str, answer: str) -> list[int]:
        """Token ids of `answer`; after a prompt with an image it begins a line of its own."""
        if isinstance(prompt, str) or prompt.image is None:
            return super().continuation_ids(prompt, answer)
        ids: list[int] = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        if not ids:
            raise TaskError("an empty answer has no tokens")
        return ids

    def look(
        self,
        images: "Sequence[Pixels | PILImage | str | Path]",
        questions: Sequence[str],
        *,
        regions: Sequence[Mapping[str, Box]] = (),
        nearest: bool = False,
        answers: Sequence[str] = (),
    ) -> Batch:
        """One prompt per image and question, padded on the left.

        Args:
            regions: per prompt, span name -> box in pixels of its image. Besides these, each prompt has the span "image", all
                its image tokens; for regions that are no boxes see `Batch.with_spans`.
            nearest: let a box without any token's middle stand for the nearest token, instead of refusing it.
            answers: texts that follow the prompts, for scoring; the model is run on them as if it had said them.

        Raises:
            ImageError: an image that cannot be read.
            RegionError: a box without image tokens.
        """
        if len(images) != len(questions) or (regions and len(regions) != len(images)) or not images:
            raise TaskError(
                f"expected as many questions (and regions) as images, got {len(images)}, {len(questions)} and {len(regions)}"
            )
        pixels = [as_pixels(image) for image in images]
        outputs = self._processed(pixels)
        rows: list[Tokens] = []
        maps: list[RegionMap] = []
        for i, (image, question) in enumerate(zip(pixels, questions, strict=True)):
            pieces = self._pieces(image, outputs, i)
            text = self._templated(question, pieces, self.image_token_id, self.sight.placeholders)
            tokens, seen = self._prompt(text, pieces, self.image_token_id, image.shape, answers[i] if answers else "")
            rows.append(_named(tokens, seen, regions[i] if regions else {}, nearest=nearest))
            maps.append(seen)
        inputs = {name: self._as_input(outputs[name]) for name in self.sight.inputs if name in outputs}
        return self._collated(rows, maps, inputs)

    def watch(
        self,
        videos: "Sequence[Sequence[Pixels | PILImage | str | Path]]",
        questions: Sequence[str],
        *,
        fps: float = 2.0,
        regions: Sequence[Mapping[str, Box | Clip]] = (),
        answers: Sequence[str] = (),
    ) -> Batch:
        """One prompt per video and question, as `look` makes one per image.

        A video is its frames, all of one size. Each is prepared as an image is, so the smaller budget of pixels that published
        video processors have is the caller's to keep: give smaller frames. An odd frame at the end counts twice.

        Args:
            fps: frames per second of what is given, not of the original.
            regions: boxes, which hold over all frames, or clips, which hold for some.

        Raises:
            SubjectError: the family sees stills alone.
            ImageError: no frames, frames of several sizes, or one that cannot be read.
            RegionError: a box or clip without image tokens.
        """
        film = self.sight.film
        if film is None:
            raise SubjectError(f"family {self.family.name} is not adapted for videos here: ask about single frames with `look`")
        if len(videos) != len(questions) or (regions and len(regions) != len(videos)) or not videos or not fps > 0:
            raise TaskError(
                f"expected as many questions (and regions) as videos and frames per second above 0, got {len(videos)}, "
                f"{len(questions)}, {len(regions)} and {fps}"
            )
        token = int(getattr(self.model.config, film.token_id))
        moments = int(self.image_processor.temporal_patch_size)
        shot = [Footage.of([as_pixels(frame) for frame in video], self._processed, moments=moments) for video in videos]
        rows: list[Tokens] = []
        maps: list[RegionMap] = []
        for i, (footage, question) in enumerate(zip(shot, questions, strict=True)):
            pieces = film.pieces(self._as_processed(footage.frames[0], footage.outputs, 0), footage.groups, fps)
            text = self._templated(question, pieces, token, (film.placeholder,))
            tokens, seen = self._prompt(text, pieces, token, footage.frames[0].shape, answers[i] if answers else "")
            rows.append(_named(tokens, seen, regions[i] if regions else {}))
            maps.append(seen)
        patches, grids = torch.cat([footage.patches for footage in shot]), torch.stack([footage.grid for footage in shot])
        return self._collated(rows, maps, film.inputs(self.model.config, patches.to(self.dtype), grids, fps))

    def _collated(self, rows: Sequence[Tokens], maps: Sequence[RegionMap], inputs: Mapping[str, Tensor]) -> Batch:
        batch = collate(rows, pad_id=self.pad_id)
        placed = tuple(seen.shifted(shift) for seen, shift in zip(maps, batch.start, strict=True))
        marks = {self.sight.marks: self._marked(batch)} if self.sight.marks else {}
        made = Batch(
            batch.ids, batch.mask, batch.spans, batch.start, batch.stop, batch.texts, images=placed, inputs={**inputs, **marks}
        )
        return made.to(self.device)

    def answer(self, image: "Pixels | PILImage | str | Path", question: str, *, max_new_tokens: int = 40) -> str:
        """What the model says, greedily."""
        return self.answers(self.look([image], [question]), max_new_tokens=max_new_tokens)[0]

    def answers(self, batch: Batch, *, max_new_tokens: int = 40) -> list[str]:
        """What the model says to each prompt of a batch, greedily, without special tokens."""
        new = self.generate(batch, max_new_tokens=max_new_tokens)
        return [self.text_of(ids) for ids in new.tolist()]

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens and the spaces around it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that image features are put in place of."""
        config: Any = self.model.config
        return int(config.image_token_id)

    def _processed(self, pixels: Sequence[Pixels]) -> Mapping[str, Any]:
        given: Any = [[image] for image in pixels] if self.sight.nested else list(pixels)
        options = dict(self.sight.options or {})
        try:
            outputs: Mapping[str, Any] = self.image_processor(
                images=given, return_tensors="pt", input_data_format="channels_last", **options
            )
        except ValueError as error:
            sizes = ", ".join(f"{p.shape[1]} x {p.shape[0]}" for p in pixels[:3])
            raise ImageError(f"the image processor of {self.name} refuses images of {sizes} pixels: {error}") from error
        return outputs

    def _pieces(self, image: Pixels, outputs: Mapping[str, Any], index: int) -> Sequence[Piece]:
        return self.sight.pieces(self._as_processed(image, outputs, index))

    def _as_processed(self, image: Pixels, outputs: Mapping[str, Any], index: int) -> ProcessedImage:
        height, width = image.shape[:2]
        return ProcessedImage(height, width, self.model.config, self.image_processor, outputs, index, self.tokenizer)

    def _prompt(
        self, prompt: tuple[str, bool], pieces: Sequence[Piece], token_id: int, shape: tuple[int, ...], answer: str
    ) -> tuple[Tokens, RegionMap]:
        """Tokens of one prompt, and where its image tokens are."""
        text, bare = prompt
        ids: list[int] = list(self.tokenizer(text, add_special_tokens=bare)["input_ids"])
        more: list[int] = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"]) if answer else []
        cells = tuple(piece for piece in pieces if isinstance(piece, Cell))
        columns = tuple(i for i, each in enumerate(ids) if each == token_id)
        if len(columns) != len(cells):
            raise SubjectError(
                f"family {self.family.name} expects {len(cells)} image tokens, the prompt has {len(columns)}: the tokenizer of "
                f"{self.name} does not keep {self.tokenizer.convert_ids_to_tokens(token_id)!r} as one token"
            )
        return Tokens([*ids, *more], {}, text, len(more)), RegionMap(shape[1], shape[0], cells, columns)

    def _templated(self, question: str, pieces: Sequence[Piece], token_id: int, placeholders: Sequence[str]) -> tuple[str, bool]:
        """The prompt's text, and whether special tokens are still to be added: a chat template brings its own."""
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if token in question:
            raise TaskError(f"a question may not contain the image token {token!r}")
        image = "".join(token if isinstance(piece, Cell) else piece for piece in pieces)
        if not getattr(self.tokenizer, "chat_template", None):
            return _PLAIN.format(image=image, question=question), True
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text = str(self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
        for placeholder in placeholders:
            if text.count(placeholder) == 1:
                return text.replace(placeholder, image), False
        raise SubjectError(
            f"the chat template of {self.name} does not leave {' or '.join(placeholders)} exactly once for an image"
        )

    def _marked(self, batch: Batch) -> Tensor:
        marks = (batch.ids == self.image_token_id).long()
        if self.sight.film is not None:
            marks[batch.ids == int(getattr(self.model.config, self.sight.film.token_id))] = self.sight.film.mark
        return marks

    def _as_input(self, value: Any) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _named(tokens: Tokens, seen: RegionMap, regions: Mapping[str, Box | Clip], *, nearest: bool = False) -> Tokens:
    spans = {name: seen.within(region, nearest=nearest) for name, region in regions.items()}
    return Tokens(tokens.ids, {"image": seen.columns, **spans}, tokens.text, tokens.n_continuation)


def as_pixels(image: "Pixels | PILImage | str | Path") -> Pixels:
    """An image as an array (height, width, 3) of uint8.

    Raises:
        ImageError: not an image, or one with more than 64 million pixels.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ImageError(f"expected an array (height, width, 3) of uint8, got {image.shape} of {image.dtype}")
        return image
    from PIL import Image, UnidentifiedImageError

    name = str(image) if isinstance(image, str | Path) else "this image"
    try:
        with Image.open(image) if isinstance(image, str | Path) else nullcontext(image) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ImageError(
                    f"{name} has {opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,} in all; scale it down first"
                )
            array: Pixels = np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name} is not an image that can be read: {str(error).splitlines()[0] if str(error) else error}"
        ) from error
    return array
