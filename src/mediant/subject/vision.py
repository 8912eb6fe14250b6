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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mediant.core.errors import ImageError, SubjectError, TaskError
from mediant.subject.batch import Batch, Tokens, collate
from mediant.subject.families.sight import Piece, ProcessedImage, Sight
from mediant.subject.regions import Box, Cell, RegionMap
from mediant.subject.subject import Subject

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Pixels = npt.NDArray[np.uint8]
# More pixels than any supported model would keep, and a guard against files that unpack to gigabytes.
MOST_PIXELS = 64_000_000
_PLAIN = "{image}\n{question}\n"


@dataclass(eq=False)
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
            tokens, seen = self._prompt(image, pieces, question, answers[i] if answers else "")
            spans = {name: seen.within(box, nearest=nearest) for name, box in (regions[i] if regions else {}).items()}
            rows.append(Tokens(tokens.ids, {"image": seen.columns, **spans}, tokens.text, tokens.n_continuation))
            maps.append(seen)
        batch = collate(rows, pad_id=self.pad_id)
        placed = tuple(seen.shifted(shift) for seen, shift in zip(maps, batch.start, strict=True))
        marks = {self.sight.marks: self._marked(batch)} if self.sight.marks else {}
        inputs = {name: self._as_input(outputs[name]) for name in self.sight.inputs if name in outputs} | marks
        made = Batch(batch.ids, batch.mask, batch.spans, batch.start, batch.stop, batch.texts, images=placed, inputs=inputs)
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
        height, width = image.shape[:2]
        made = ProcessedImage(height, width, self.model.config, self.image_processor, outputs, index, self.tokenizer)
        return self.sight.pieces(made)

    def _prompt(self, image: Pixels, pieces: Sequence[Piece], question: str, answer: str) -> tuple[Tokens, RegionMap]:
        """Tokens of one prompt, and where its image tokens are."""
        token = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        if token in question:
            raise TaskError(f"a question may not contain the image token {token!r}")
        expanded = "".join(token if isinstance(piece, Cell) else piece for piece in pieces)
        text, bare = self._templated(question, expanded)
        ids: list[int] = list(self.tokenizer(text, add_special_tokens=bare)["input_ids"])
        more: list[int] = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"]) if answer else []
        cells = tuple(piece for piece in pieces if isinstance(piece, Cell))
        columns = tuple(i for i, each in enumerate(ids) if each == self.image_token_id)
        if len(columns) != len(cells):
            raise SubjectError(
                f"family {self.family.name} expects {len(cells)} image tokens, the prompt has {len(columns)}: the tokenizer of "
                f"{self.name} does not keep {token!r} as one token"
            )
        return Tokens([*ids, *more], {}, text, len(more)), RegionMap(image.shape[1], image.shape[0], cells, columns)

    def _templated(self, question: str, image: str) -> tuple[str, bool]:
        """The prompt's text, and whether special tokens are still to be added: a chat template brings its own."""
        if not getattr(self.tokenizer, "chat_template", None):
            return _PLAIN.format(image=image, question=question), True
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text = str(self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
        for placeholder in self.sight.placeholders:
            if text.count(placeholder) == 1:
                return text.replace(placeholder, image), False
        raise SubjectError(
            f"the chat template of {self.name} does not leave {' or '.join(self.sight.placeholders)} exactly once for an image"
        )

    def _marked(self, batch: Batch) -> Tensor:
        return (batch.ids == self.image_token_id).long()

    def _as_input(self, value: Any) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


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
