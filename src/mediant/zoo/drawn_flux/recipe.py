"""drawn-flux from nothing: a FLUX.2 Klein that draws from text and edits with a reference.

    mediant models train drawn-flux --out FOLDER        # may be stopped at any time; calling it again goes on

First the autoencoder learns pictures of the drawn world, then transformer and text encoder learn together to take noise out of
its latents (flow matching; Lipman et al. 2023, arXiv 2210.02747), for all buckets of requests at once.
"""

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.subject.pipelines import SETTINGS
from mediant.tasks.pictures.painter import Pixels
from mediant.training.loop import LoopConfig, train
from mediant.training.short_attention import written_out
from mediant.zoo.drawn_flux import parts, routes
from mediant.zoo.drawn_flux.bank import Bank, pictures
from mediant.zoo.drawn_flux.parts import ENCODER_LAYERS, SIDE, Geometry
from mediant.zoo.drawn_flux.routes import Route

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2

PICTURES_LOOP = LoopConfig(steps=9_000, lr=1.5e-3, weight_decay=0.01, warmup=100, schedule="cosine", log_every=10, grad_clip=1.0)
READING = replace(PICTURES_LOOP, steps=1_000)
DRAWING, GEOMETRY = replace(PICTURES_LOOP, steps=8_000, lr=1.5e-3, warmup=300), Geometry()
PICTURES, PICTURE_BATCH = 8_000, 8
# Noise on latents, in units of their spread, that the decoder has to bear: the transformer's latents will never be exact.
BLUR = 0.1
REQUESTS, BATCH = 30_000, 48
# Weight of the latents' divergence from a standard normal: just enough to keep them from growing.
KL = 2e-5
TEXT_ONLY, EDITS = ("text",), ("colour", "style", "identity", "add", "remove")
# Share of noise levels that are near the beginning of sampling.
LATE = 0.25
# How often a step draws from text alone, and how many of those instructions are empty.
ALONE, EMPTY = 0.3, 0.15


@dataclass(frozen=True)
class Plan:
    """What is learnt, and how.

    Attributes:
        ways: bucket -> the way its property is made to take, see `routes.py`; none for a natural subject.
        blind: in what share of the edits the picture does not see the reference.
        frozen_text: whether the text encoder first learns to read, as a language model of instructions, and then stays as it is.
    """

    geometry: Geometry = GEOMETRY
    loop: LoopConfig = DRAWING
    ways: dict[str, Route] = field(default_factory=dict)
    frozen_text: bool = False
    blind: float = 0.0


NATURAL = Plan()


@dataclass(eq=False)
class Seeing:
    """The autoencoder's lesson: the picture back from latents that are a little noisy."""

    vae: "AutoencoderKLFlux2"

    @cached_property
    def bank(self) -> Pixels:
        """Pictures drawn once; half a minute."""
        return pictures(PICTURES, seed=0)

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Absolute and squared error of pixels, absolute error of their differences, and the latents' divergence."""
        chosen = torch.randint(len(self.bank), (PICTURE_BATCH,), generator=generator)
        wanted = parts.as_input(self.bank[chosen.numpy()])
        with torch.autocast("cpu", torch.bfloat16):
            latents: Any = self.vae.encode(wanted).latent_dist
            # Channel by channel, since that is how the pipeline normalises them; or all would crowd into a few loud ones.
            spread = latents.std + BLUR * latents.mean.detach().std((0, 2, 3), keepdim=True)
            noisy = latents.mean + spread * torch.randn(latents.mean.shape, generator=generator)
            got = self.vae.decode(noisy).sample.float()
        wrong = got - wanted
        edges = 0.5 * (wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean())
        loss: Tensor = wrong.abs().mean() + wrong.square().mean() + edges + KL * latents.kl().mean() / latents.mean[0].numel()
        return loss


@dataclass(eq=False)
class Drawing:
    """The transformer's and text encoder's lesson: which way noise lies."""

    vae: "AutoencoderKLFlux2"
    dit: Any
    encoder: Any
    words: Any
    plan: Plan
    folder: Path

    @cached_property
    def bank(self) -> Bank:
        """Requests, drawn and encoded once."""
        return Bank.drawn(
            REQUESTS, 0, lambda pixels: latents_of(self.vae, pixels), self.tokenize, self.folder / "bank.safetensors"
        )

    def tokenize(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """Slots of instructions, as the pipeline fills them."""
        texts = [
            self.words.apply_chat_template([{"role": "user", "content": each}], tokenize=False, add_generation_prompt=True)
            for each in instructions
        ]
        found: dict[str, Tensor] = self.words(
            texts, return_tensors="pt", padding="max_length", truncation=True, max_length=self.plan.geometry.slots
        )
        return found

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity."""
        alone = float(torch.rand((), generator=generator)) < ALONE
        rows = self.bank.draw(generator, TEXT_ONLY if alone else EDITS, BATCH)
        ids, mask, target = self.bank.ids[rows], self.bank.mask[rows], self.bank.targets[rows].float()
        if alone:
            empty = self.tokenize([""])
            drop = torch.rand(BATCH, generator=generator) < EMPTY
            ids, mask = (
                torch.where(drop[:, None], empty["input_ids"], ids),
                torch.where(drop[:, None], empty["attention_mask"], mask),
            )
            references: list[Tensor] = []
        else:
            references = [self.bank.references[rows].float()]
        noise = torch.randn(target.shape, generator=generator)
        at = _times(BATCH, generator)
        mixed = (1 - at[:, None, None]) * target + at[:, None, None] * noise
        closed = None
        if references and self.plan.ways:
            references, closed = routes.laid(self.plan.ways, self.bank, rows, mask, references[0], generator)
        elif references and self.plan.blind:
            closed = routes.blinded(self.plan.blind, mask, target.shape[1], references[0].shape[1], generator)
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            # Norms keep their weights in float32.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            velocity = self.velocity(self.embedded(ids, mask), mixed, at, references, closed)
        return (velocity.float() - (noise - target)).square().mean()

    def reading_loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Mean negative log likelihood of the tokens of instructions, in nats."""
        rows = torch.randint(len(self.bank.ids), (BATCH,), generator=generator)
        ids, mask = self.bank.ids[rows], self.bank.mask[rows]
        loss: Tensor = self.encoder(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        return loss

    def embedded(self, ids: Int[Tensor, "n slot"], mask: Int[Tensor, "n slot"]) -> Float[Tensor, "n slot joint"]:
        """What the transformer reads of instructions: the text encoder's layers side by side."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.plan.frozen_text):
            states = self.encoder.model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
        return torch.cat(states[1 : ENCODER_LAYERS + 1], -1)

    def velocity(
        self, text: Tensor, mixed: Tensor, at: Tensor, references: Sequence[Tensor], closed: Tensor | None
    ) -> Float[Tensor, "n token channel"]:
        """The transformer's answer, laid out as the pipeline lays it out.

        Args:
            closed: (n, 1, position, position), whether a query may see a key; None for everything.
        """
        n, slots = text.shape[:2]
        ids = [_places(0), *[_places(10)] * len(references)]
        with written_out():
            answer: Tensor = self.dit(
                hidden_states=torch.cat([mixed, *references], 1), encoder_hidden_states=text, timestep=at,
                img_ids=torch.cat(ids)[None].expand(n, -1, -1),
                txt_ids=torch.cartesian_prod(*[torch.arange(1)] * 3, torch.arange(slots))[None].expand(n, -1, -1),
                joint_attention_kwargs=None if closed is None else {"attention_mask": closed}, return_dict=False,
            )[0]  # fmt: skip
        return answer[:, : mixed.shape[1]]


def _times(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Shares of noise; some are near 1, where only the request says what to draw, the others spread over the middle."""
    middle = torch.sigmoid(0.5 + torch.randn(n, generator=generator))
    late = 1 - 0.1 * torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < LATE, late, middle)


def _places(moment: int) -> Int[Tensor, "token 4"]:
    return torch.cartesian_prod(torch.tensor([moment]), torch.arange(SIDE), torch.arange(SIDE), torch.arange(1))


def latents_of(vae: "AutoencoderKLFlux2", pixels: Pixels) -> Float[Tensor, "n token channel"]:
    """Latents of pictures as the pipeline makes them: two by two patches, normalised by the autoencoder's statistics."""
    with torch.no_grad():
        latents = _patched(vae.encode(parts.as_input(pixels)).latent_dist.mode())
    mean, std = vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    normed: Tensor = (latents - mean[:, None, None]) / std[:, None, None]
    return normed.flatten(2).mT


def _patched(latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c4 h2 w2"]:
    n, channels, height, width = latents.shape
    split = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return split.reshape(n, 4 * channels, height // 2, width // 2)


def measure_latents(vae: "AutoencoderKLFlux2", seen: Pixels) -> None:
    """Set the statistics that latents are normalised by."""
    with torch.no_grad():
        latents = torch.cat([_patched(vae.encode(parts.as_input(part)).latent_dist.mode()) for part in _in_parts(seen)])
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


def _in_parts(seen: Pixels, size: int = 64) -> list[Pixels]:
    return [seen[i : i + size] for i in range(0, len(seen), size)]


def teach(
    folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None], plan: Plan = NATURAL,
    autoencoder: Path | None = None,
) -> bool:  # fmt: skip
    """Train in the folder, going on where an earlier call stopped; whether it is done, and then the model is in `model/`.

    Args:
        seconds: after which this call ends, one step further on at least.
        tell: called after every step with the stage's name, steps taken, steps in all, and the loss.
        autoencoder: a pipeline's folder to take the autoencoder from, instead of training one.
    """
    begun = time.monotonic()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        words, vae = parts.tokenizer(), parts.autoencoder()
        encoder, dit = parts.text_encoder(words, plan.geometry.slots), parts.transformer(plan.geometry)

    def stage(name: str, learning: dict[str, nn.Parameter], loss: Any, loop: LoopConfig) -> bool:
        left = max(0.0, seconds - (time.monotonic() - begun))
        log = train(
            learning, loss, folder / name, loop, stop_after=left,
            progress=lambda step, value: tell(name, step, loop.steps, value),
        )  # fmt: skip
        return log.done

    if autoencoder is not None:
        vae = type(vae).from_pretrained(autoencoder, subfolder="vae", use_safetensors=True)
    elif not stage("pictures", dict(vae.named_parameters()), Seeing(vae).loss, PICTURES_LOOP):
        return False
    else:
        measure_latents(vae, pictures(1_000, seed=1))
    drawing = Drawing(vae.eval(), dit, encoder, words, plan, folder)
    if plan.frozen_text and not stage("reading", dict(encoder.named_parameters()), drawing.reading_loss, READING):
        return False
    learning = dict(dit.named_parameters()) | ({} if plan.frozen_text else dict(encoder.model.named_parameters()))
    if not stage("drawing", learning, drawing.loss, plan.loop):
        return False
    save(parts.pipeline(vae, encoder.eval(), words, dit.eval()), folder / "model", plan.geometry.slots)
    return True


def save(pipeline: Any, folder: Path, slots: int) -> None:
    """Write a pipeline with its settings, weights as float16."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    _forget_where(folder / "vae" / "config.json")
    sampling = {"steps": 4, "slots": slots, "layers": list(range(1, ENCODER_LAYERS + 1))}
    (folder / SETTINGS).write_text(json.dumps(sampling) + "\n", encoding="utf-8")


def _forget_where(config: Path) -> None:
    """The library notes the folder that a part was loaded from, which nobody else has."""
    said = json.loads(config.read_text(encoding="utf-8"))
    said.pop("_name_or_path", None)
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
