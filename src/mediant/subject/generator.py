"""An `ImageGenerator` makes pictures from an instruction and reference images; its token groups are spans.

    flux = mediant.load("drawn-flux")
    batch = flux.encode(["a ball in the colour of this image"], references=[[swatch]], seeds=[0], height=64, width=64)
    batch.columns(0, Span("instruction")), batch.columns(0, Span("reference"))
    flux.pixels(flux.sample(batch))                # (1, 64, 64, 3) uint8

Columns are those of the joint sequence that attention sees: text slots, then the picture being made, then the references. Spans
are "text" with its parts "instruction", "scaffold" (the chat template around it) and "padding", "beside" (all of the text but the
instruction), "picture", "reference", and "reference1", "reference2", ... for each. The library's own pipeline does the work; rows
of a batch may have references of their own, as long as they are of one size.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.core.errors import EditError, ImageError, OutOfRange, SubjectError, TaskError
from mediant.subject import joint_layout
from mediant.subject.batch import Batch
from mediant.subject.families.two_streams import TwoStreamFamily
from mediant.subject.open_model import OpenModel
from mediant.subject.vision import as_pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Pixels = npt.NDArray[np.uint8]
Latents = Float[Tensor, "row channel height width"]
SMALLEST, WIDEST, LARGEST = 64, 8, 1024 * 1024


@dataclass(frozen=True)
class Sampling:
    """How pictures are made where a call does not say otherwise.

    Attributes:
        steps: steps from noise to picture.
        slots: text slots, filled with padding; all of them take part in attention, so their number matters.
        layers: of the text encoder, whose outputs are put side by side; None for the pipeline's own choice.
        guidance: scale of guidance; a model distilled to do without ignores it.
    """

    steps: int = 4
    slots: int = 512
    layers: tuple[int, ...] | None = None
    guidance: float = 1.0


@dataclass(eq=False, kw_only=True)
class ImageGenerator(OpenModel):
    """A diffusion transformer inside the library's pipeline.

    `model` is the transformer: edits and sites concern it alone.
    """

    pipeline: Any
    family: TwoStreamFamily
    sampling: Sampling = field(default_factory=Sampling)
    _time: float = 0.0
    # Several contexts note the same forward; every forward has a time tensor of its own.
    _noted: Tensor | None = None

    @property
    def entry(self) -> nn.Module:
        """The transformer."""
        return self.model

    @property
    def patch(self) -> int:
        """Side, in pixels, of what one token stands for."""
        return 2 * int(self.pipeline.vae_scale_factor)

    def encode(
        self,
        instructions: Sequence[str],
        *,
        references: "Sequence[Sequence[Pixels | PILImage | str | Path]]" = (),
        seeds: Sequence[int] = (),
        height: int,
        width: int,
    ) -> Batch:
        """One picture to be made per instruction.

        Args:
            references: per row, the images that the instruction may call "this image"; the same number and sizes in all rows.
            seeds: of each row's noise; default: 0, 1, 2, ...

        Raises:
            TaskError: lists of different lengths, or a row with more references than another.
            OutOfRange: a height or width that is no multiple of what a token stands for.
            ImageError: a reference that cannot be read, or is too small, too long, or of another size than those of other rows.
            SpanError: an instruction that does not occur exactly once among its tokens.
        """
        seeds = list(seeds) or list(range(len(instructions)))
        self._check_request(instructions, references, seeds, height, width)
        embeds, ids, mask = self._embedded(instructions)
        inputs = {"prompt_embeds": embeds, "noise": self._noise(seeds, height, width, embeds.dtype)}
        moments = [0] * (inputs["noise"].shape[2] * inputs["noise"].shape[3])
        if references and references[0]:
            inputs |= self._encoded(references)
            moments += joint_layout.moments(inputs["reference_ids"])
        groups = joint_layout.groups(embeds.shape[1], moments)
        rows = len(instructions)
        spans = [self._text_spans(text, row, real) | groups for text, row, real in zip(instructions, ids, mask, strict=True)]
        every = torch.cat([ids, ids.new_zeros(rows, len(moments))], 1)
        real, start, stop = torch.ones_like(every, dtype=torch.bool), (0,) * rows, (every.shape[1],) * rows
        return Batch(every, real, tuple(spans), start, stop, tuple(instructions), inputs=inputs).to(self.device)

    def slots_of(self, batch: Batch, beginnings: Sequence[str]) -> list[tuple[int, ...]]:
        """The slots of each row that hold the words its instruction begins with.

        Raises:
            SpanError: an instruction begins otherwise.
        """
        found = []
        for text, ids, spans in zip(beginnings, batch.ids.tolist(), batch.spans, strict=True):
            asked = spans["instruction"]
            found.append(joint_layout.beginning(text, [ids[slot] for slot in asked], asked, self._decode))
        return found

    def n_tokens(self, text: str) -> int:
        """Slots that a text takes up by itself."""
        words = getattr(self.pipeline.tokenizer, "tokenizer", self.pipeline.tokenizer)
        return len(words(text, add_special_tokens=False)["input_ids"])

    def sample(self, batch: Batch, *, steps: int | None = None, gradients: bool = False) -> Latents:
        """Make the pictures of a batch, as latents, under whatever edits are active.

        Args:
            gradients: let them flow through all steps, which the pipeline by itself does not.
        """
        steps = self.sampling.steps if steps is None else steps
        if steps < 1:
            raise OutOfRange(f"a picture takes at least one step, got {steps}")
        self.check_hooks()
        call: Any = type(self.pipeline).__call__
        run = call.__wrapped__ if gradients else torch.no_grad()(call)
        noise = batch.inputs["noise"]
        side = self.patch
        given: dict[str, Any] = {
            "prompt_embeds": batch.inputs["prompt_embeds"], "latents": noise, "num_inference_steps": steps,
            "height": noise.shape[2] * side, "width": noise.shape[3] * side, "guidance_scale": self.sampling.guidance,
            "output_type": "latent", "return_dict": False, "max_sequence_length": self.sampling.slots, **self._layers(),
        }  # fmt: skip
        with self.reading(batch), self._shown(batch) as images:
            latents: Tensor = run(self.pipeline, image=images, **given)[0]
        self.work.add(batch.n_rows * batch.n_cols * self.shape.n_layers * steps, latents)
        return self._unpacked(latents, noise.shape[2], noise.shape[3])

    def _unpacked(self, latents: Tensor, height: int, width: int) -> Latents:
        """Latents as the autoencoder takes them; some pipelines give them as tokens."""
        if latents.ndim == 4:
            return latents
        grid = latents.mT.unflatten(-1, (height, width))
        bn, eps = self.pipeline.vae.bn, self.pipeline.vae.config.batch_norm_eps
        mean, std = (each.view(1, -1, 1, 1).to(grid) for each in (bn.running_mean, torch.sqrt(bn.running_var + eps)))
        unpacked: Tensor = self.pipeline._unpatchify_latents(grid * std + mean)
        return unpacked

    def pixels(self, latents: Latents) -> Pixels:
        """Pictures (row, height, width, 3) from latents."""
        with torch.no_grad():
            decoded = self.pipeline.vae.decode(latents.to(self.pipeline.vae.dtype), return_dict=False)[0]
        array = self.pipeline.image_processor.postprocess(decoded, output_type="np")
        found: Pixels = np.round(array * 255).astype(np.uint8)
        return found

    def note_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note the layout and the step of the forward that begins, from its position ids and its time.

        Raises:
            EditError: references come before the picture, or the sequence is not the declared batch's.
        """
        given = inspect.signature(self.model.forward).bind(*args, **kwargs).arguments
        n_text, moments = given["encoder_hidden_states"].shape[1], joint_layout.moments(given["img_ids"])
        groups, window = joint_layout.groups(n_text, moments), self.window
        if window.batch is None or not window.declared:
            window.batch = joint_layout.bare(given["hidden_states"].shape[0], n_text + len(moments), groups).to(self.device)
        elif any(window.batch.spans[0].get(name) != columns for name, columns in groups.items()):
            raise EditError(f"a forward has {n_text} text slots and {len(moments)} image tokens, unlike the declared batch")
        window.offset, window.width, window.n_text = 0, n_text + len(moments), n_text
        window.written.clear()
        if given["timestep"] is not self._noted:
            self._noted = given["timestep"]
            self._note_step(float(given["timestep"].flatten()[0]))

    def _note_step(self, time: float) -> None:
        """Time runs from 1 to 0; where it stands still, the pass without the instruction follows the one with it."""
        window, again = self.window, time == self._time
        guided = bool(getattr(self.pipeline, "do_classifier_free_guidance", False))
        if window.step is None or time > self._time or (again and (not guided or window.guidance)):
            window.step, window.guidance = 0, 0
        elif again:
            window.guidance = 1
        else:
            window.step, window.guidance = window.step + 1, 0
        self._time = time

    def check_hooks(self) -> None:
        """Refuse to be hooked where forwards are skipped or replaced.

        Raises:
            SubjectError: a cache of steps, compilation, or offloading is active.
        """
        if getattr(self.model, "is_cache_enabled", False):
            raise SubjectError("a cache that skips blocks is enabled; call `pipeline.transformer.disable_cache()` first")
        if any(hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in self.model.modules()):
            raise SubjectError(
                "the transformer is compiled, so hooks on its parts would not be called; load it without compiling"
            )
        registry = getattr(self.model, "_diffusers_hook", None)
        moved = any("offload" in name for name in getattr(registry, "hooks", {}))
        if moved or any(getattr(getattr(each, "_hf_hook", None), "offload", False) for each in self.model.modules()):
            raise SubjectError(
                "parts of the transformer are offloaded while it runs; load it on one device, or with `device_map`"
            )

    def _check_request(
        self, instructions: Sequence[str], references: Sequence[Sequence[object]], seeds: Sequence[int], height: int, width: int
    ) -> None:
        n = len(instructions)
        if not n or len(seeds) != n or (references and len(references) != n):
            raise TaskError(
                f"expected as many seeds (and lists of references) as instructions, got {len(seeds)}, {len(references)} and {n}"
            )
        if references and len({len(each) for each in references}) > 1:
            raise TaskError(f"rows of a batch have the same number of references, got {[len(each) for each in references][:5]}")
        side = self.patch
        near = [max(side, round(each / side) * side) for each in (height, width)]
        if near != [height, width]:
            raise OutOfRange(
                f"height and width are multiples of {side}, the side of what a token stands for; got {height} x {width}, nearest "
                f"are {near[0]} x {near[1]}"
            )

    def _layers(self) -> dict[str, Any]:
        return {} if self.sampling.layers is None else {"text_encoder_out_layers": self.sampling.layers}

    def _embedded(self, instructions: Sequence[str]) -> tuple[Tensor, Int[Tensor, "row slot"], Int[Tensor, "row slot"]]:
        """What the transformer is given for instructions, and the tokens and mask that the text encoder saw."""
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(_: nn.Module, __: Any, kwargs: Mapping[str, Any]) -> None:
            seen.append((kwargs["input_ids"], kwargs["attention_mask"]))

        handle = self.pipeline.text_encoder.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(
                    prompt=list(instructions), max_sequence_length=self.sampling.slots, **self._layers()
                )
        finally:
            handle.remove()
        return embeds, torch.cat([ids for ids, _ in seen]), torch.cat([mask for _, mask in seen])

    def _text_spans(self, text: str, ids: Int[Tensor, " slot"], mask: Int[Tensor, " slot"]) -> dict[str, tuple[int, ...]]:
        """Slots of the instruction, of the template around it, and of padding, on whichever side that is."""
        real = torch.nonzero(mask).flatten().tolist()
        padding = torch.nonzero(mask == 0).flatten().tolist()
        asked = joint_layout.slots_of(text, ids.tolist(), real, self._decode)
        return {
            "instruction": asked,
            "scaffold": tuple(slot for slot in real if slot not in asked),
            "padding": tuple(padding),
            "beside": tuple(slot for slot in range(len(ids)) if slot not in asked),
        }

    def _decode(self, ids: Sequence[int]) -> str:
        words = getattr(self.pipeline.tokenizer, "tokenizer", self.pipeline.tokenizer)
        return str(words.decode(list(ids), clean_up_tokenization_spaces=False))

    def _noise(self, seeds: Sequence[int], height: int, width: int, dtype: torch.dtype) -> Latents:
        from diffusers.utils.torch_utils import randn_tensor

        shape = (len(seeds), self.model.config.in_channels, height // self.patch, width // self.patch)  # type: ignore[union-attr]
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        drawn: Tensor = randn_tensor(shape, generator=generators, device=self.device, dtype=dtype)
        return drawn

    def _encoded(self, references: "Sequence[Sequence[Any]]") -> dict[str, Tensor]:
        """Latents (row, token, channel) of every row's references side by side, and their position ids (row, token, 4)."""
        found, places, sizes = [], [], set[tuple[tuple[int, int], ...]]()
        for row in references:
            images = [self._prepared(image) for image in row]
            sizes.add(tuple((image.shape[2], image.shape[3]) for image in images))
            if len(sizes) > 1:
                raise ImageError(f"rows of a batch have references of the same sizes, got {sorted(sizes)} (height, width)")
            with torch.no_grad():
                latents, ids = self.pipeline.prepare_image_latents(images, 1, None, self.device, self.pipeline.vae.dtype)
            found.append(latents)
            places.append(ids)
        return {"references": torch.cat(found), "reference_ids": torch.cat(places)}

    def _prepared(self, image: Any) -> Tensor:
        """An image as the pipeline prepares it: at most 1,024 squared, cut to whole tokens."""
        from PIL import Image

        pixels = as_pixels(image)
        opened = Image.fromarray(pixels)
        if min(opened.size) < SMALLEST or max(opened.size) > WIDEST * min(opened.size):
            raise ImageError(
                f"a reference has at least {SMALLEST} pixels a side and is at most {WIDEST} times as long as wide, got "
                f"{opened.width} x {opened.height}"
            )
        if opened.width * opened.height > LARGEST:
            opened = self.pipeline.image_processor._resize_to_target_area(opened, LARGEST)
        wide, high = (side // self.patch * self.patch for side in opened.size)
        prepared: Tensor = self.pipeline.image_processor.preprocess(opened, height=high, width=wide, resize_mode="crop")
        return prepared

    @contextmanager
    def _shown(self, batch: Batch) -> Iterator[list[Any] | None]:
        """Let the pipeline take the batch's references, which differ from row to row; yields what it is to be given."""
        from PIL import Image

        if "references" not in batch.inputs:
            yield None
            return
        blank = Image.new("RGB", (SMALLEST, SMALLEST))

        def prepared(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return batch.inputs["references"], batch.inputs["reference_ids"]

        self.pipeline.prepare_image_latents = prepared
        try:
            yield [blank]
        finally:
            del self.pipeline.prepare_image_latents
