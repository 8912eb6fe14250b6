"""drawn-flux from nothing: a FLUX.2 Klein that draws from text and edits with a reference.

    mediant models train drawn-flux --out FOLDER        # may be stopped at any time; calling it again goes on
    mediant models train drawn-flux --out FOLDER --device cuda      # more pictures, for longer: how the shipped one was made

First the autoencoder learns pictures of the drawn world, then transformer and text encoder learn together to take noise out of
its latents (flow matching; Lipman et al. 2023, arXiv 2210.02747), for all buckets of requests at once.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from mediant.subject.pipelines import SETTINGS
from mediant.tasks.pictures.painter import Pixels
from mediant.training.loop import LoopConfig, chance_on, train
from mediant.training.recording import Recorded
from mediant.training.short_attention import written_out
from mediant.zoo.drawn_flux import parts, routes
from mediant.zoo.drawn_flux.bank import Bank, pictures
from mediant.zoo.drawn_flux.parts import ENCODER_LAYERS
from mediant.zoo.drawn_flux.plan import Pace, Plan, pace_on

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2

# Noise on latents, in units of their spread, that the decoder has to bear: the transformer's latents will never be exact.
BLUR = 0.1
# Weight of the latents' divergence from a standard normal: just enough to keep them from growing.
KL = 2e-5
TEXT_ONLY, EDITS = ("text",), ("colour", "style", "identity", "add", "remove")
# Share of noise levels that are near the beginning of sampling.
LATE = 0.25
# How often a step draws from text alone, and how many of those instructions are empty.
ALONE, EMPTY = 0.3, 0.15
NATURAL = Plan()


class Redrawing(nn.Module):
    """How far a picture is from what the autoencoder makes of it, when its latents are a little noisy."""

    def __init__(self, vae: "AutoencoderKLFlux2") -> None:
        super().__init__()
        self.vae = vae

    def forward(self, wanted: Float[Tensor, "n 3 h w"], noise: Float[Tensor, "n channel y x"]) -> Float[Tensor, ""]:
        """Absolute and squared error of pixels, absolute error of their differences, and the latents' divergence."""
        with torch.autocast(wanted.device.type, torch.bfloat16, cache_enabled=False):
            latents: Any = self.vae.encode(wanted).latent_dist
            # Channel by channel, since that is how the pipeline normalises them; or all would crowd into a few loud ones.
            spread = latents.std + BLUR * latents.mean.detach().std((0, 2, 3), keepdim=True)
            got = self.vae.decode(latents.mean + spread * noise).sample.float()
        wrong = got - wanted
        edges = 0.5 * (wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean())
        loss: Tensor = wrong.abs().mean() + wrong.square().mean() + edges + KL * latents.kl().mean() / latents.mean[0].numel()
        return loss


@dataclass(eq=False)
class Seeing:
    """The autoencoder's lesson: the picture back from its latents."""

    vae: "AutoencoderKLFlux2"
    pace: Pace

    @cached_property
    def bank(self) -> Tensor:
        """Pictures drawn once; half a minute."""
        return torch.from_numpy(pictures(self.pace.pictures, seed=0, workers=self.pace.workers)).to(self.vae.device)

    @cached_property
    def _wrong(self) -> Recorded:
        return Recorded(Redrawing(self.vae))

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """See `Redrawing`."""
        device = self.vae.device
        generator = chance_on(device, generator)
        chosen = torch.randint(len(self.bank), (self.pace.picture_batch,), generator=generator, device=device)
        wanted = parts.as_input(self.bank[chosen])
        side = wanted.shape[-1] // 8
        noise = torch.randn(len(wanted), parts.LATENT_CHANNELS, side, side, generator=generator, device=device)
        return self._wrong(wanted, noise)


class Answering(nn.Module):
    """The transformer, as the pipeline calls it."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.dit = dit

    def forward(
        self, text: Float[Tensor, "n slot joint"], seen: Float[Tensor, "n token channel"], at: Float[Tensor, " n"],
        places: Int[Tensor, "token 4"], slots: Int[Tensor, "slot 4"], may: Bool[Tensor, "..."],
    ) -> Float[Tensor, "n token channel"]:  # fmt: skip
        """Velocities of all tokens, in bfloat16 while it learns; `may` is empty where every query may see every key."""
        n = len(text)
        # Norms keep their weights in float32.
        lower = torch.autocast(text.device.type, torch.bfloat16, enabled=self.dit.training, cache_enabled=False)
        with lower, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            answer: Tensor = self.dit(
                hidden_states=seen, encoder_hidden_states=text, timestep=at, img_ids=places.expand(n, -1, -1),
                txt_ids=slots.expand(n, -1, -1), return_dict=False,
                joint_attention_kwargs={"attention_mask": may} if may.numel() else None,
            )[0]  # fmt: skip
        return answer.float()


@dataclass(eq=False)
class Drawing:
    """The transformer's and text encoder's lesson: which way noise lies."""

    vae: "AutoencoderKLFlux2"
    dit: Any
    encoder: Any
    words: Any
    plan: Plan
    pace: Pace
    folder: Path

    @cached_property
    def bank(self) -> Bank:
        """Requests, drawn and encoded once."""
        bank = Bank.drawn(
            self.pace.requests, 0, lambda pixels: latents_of(self.vae, pixels), self.tokenize, self.folder / "bank.safetensors",
            enlarge=self.plan.enlarge, workers=self.pace.workers,
        )  # fmt: skip
        return bank.to(self.dit.device)

    @cached_property
    def _empty(self) -> tuple[Tensor, Tensor]:
        tokens = self.tokenize([""])
        return tokens["input_ids"].to(self.dit.device), tokens["attention_mask"].to(self.dit.device)

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
        n, device = self.pace.batch, self.dit.device
        alone = float(torch.rand((), generator=generator)) < ALONE
        generator = chance_on(device, generator)
        rows = self.bank.draw(generator, TEXT_ONLY if alone else EDITS, n)
        ids, mask, target = self.bank.ids[rows], self.bank.mask[rows], self.bank.targets[rows].float()
        if alone:
            drop = torch.rand(n, generator=generator, device=device)[:, None] < EMPTY
            no_ids, no_mask = self._empty
            ids, mask = torch.where(drop, no_ids, ids), torch.where(drop, no_mask, mask)
            references: list[Tensor] = []
        else:
            references = [self.bank.references[rows].float()]
        noise = torch.randn(target.shape, generator=generator, device=device)
        at = _times(n, generator)
        mixed = (1 - at[:, None, None]) * target + at[:, None, None] * noise
        closed = None
        if references and self.plan.ways:
            references, closed = routes.laid(self.plan.ways, self.bank, rows, mask, references[0], generator)
        elif references and self.plan.blind:
            closed = routes.blinded(self.plan.blind, mask, target.shape[1], references[0].shape[1], generator)
        velocity = self.velocity(self.embedded(ids, mask), mixed, at, references, closed)
        return (velocity - (noise - target)).square().mean()

    def reading_loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Mean negative log likelihood of the tokens of instructions, in nats."""
        rows = torch.randint(len(self.bank.ids), (self.pace.batch,), generator=generator).to(self.dit.device)
        ids, mask = self.bank.ids[rows], self.bank.mask[rows]
        loss: Tensor = self.encoder(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        return loss

    def embedded(self, ids: Int[Tensor, "n slot"], mask: Int[Tensor, "n slot"]) -> Float[Tensor, "n slot joint"]:
        """What the transformer reads of instructions: the text encoder's layers side by side."""
        learns = torch.is_grad_enabled() and not self.plan.frozen_text
        with torch.set_grad_enabled(learns), torch.autocast(ids.device.type, torch.bfloat16, enabled=self.encoder.training):
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
        seen = torch.cat([mixed, *references], 1)
        slots, places = _layout(text.shape[1], mixed.shape[1], tuple(each.shape[1] for each in references), text.device)
        may = torch.empty(0, dtype=torch.bool, device=text.device) if closed is None else closed
        # What is quicker on a CPU is not on a GPU.
        with written_out() if text.device.type == "cpu" else nullcontext():
            return self._answered(text, seen, at, places, slots, may)[:, : mixed.shape[1]]

    @cached_property
    def _answered(self) -> Recorded:
        return Recorded(Answering(self.dit))


@lru_cache
def _layout(
    slots: int, tokens: int, references: tuple[int, ...], device: torch.device
) -> tuple[Int[Tensor, "slot 4"], Int[Tensor, "token 4"]]:  # fmt: skip
    """Places of instruction slots, and of the picture's and the references' tokens, as the pipeline numbers them."""
    text = torch.cartesian_prod(*[torch.arange(1)] * 3, torch.arange(slots))
    places = torch.cat([_places(0, tokens), *[_places(10, each) for each in references]])
    return text.to(device), places.to(device)


def _times(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Shares of noise; some are near 1, where only the request says what to draw, the others spread over the middle."""
    middle = torch.sigmoid(0.5 + torch.randn(n, generator=generator, device=generator.device))
    late, chosen = torch.rand(2, n, generator=generator, device=generator.device)
    return torch.where(chosen < LATE, 1 - 0.1 * late, middle)


def _places(moment: int, tokens: int) -> Int[Tensor, "token 4"]:
    side = torch.arange(math.isqrt(tokens))
    return torch.cartesian_prod(torch.tensor([moment]), side, side, torch.arange(1))


def latents_of(vae: "AutoencoderKLFlux2", pixels: Pixels) -> Float[Tensor, "n token channel"]:
    """Latents of pictures as the pipeline makes them: two by two patches, normalised by the autoencoder's statistics."""
    with torch.no_grad():
        latents = _patched(vae.encode(parts.as_input(pixels).to(vae.device)).latent_dist.mode())
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
        latents = torch.cat(
            [_patched(vae.encode(parts.as_input(part).to(vae.device)).latent_dist.mode()) for part in _in_parts(seen)]
        )
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


def _in_parts(seen: Pixels, size: int = 64) -> list[Pixels]:
    return [seen[i : i + size] for i in range(0, len(seen), size)]


def teach(
    folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None], device: str = "cpu", plan: Plan = NATURAL,
    autoencoder: Path | None = None, begin: Path | None = None,
) -> bool:  # fmt: skip
    """Train in the folder, going on where an earlier call stopped; whether it is done, and then the model is in `model/`.

    Args:
        seconds: after which this call ends, one step further on at least.
        tell: called after every step with the stage's name, steps taken, steps in all, and the loss.
        device: a GPU learns from more pictures, for longer (`Pace`).
        autoencoder: a pipeline's folder to take the autoencoder from, instead of training one.
        begin: a pipeline's folder to take all weights from, instead of none: what another machine began settles here, with a
            smaller step size that falls to nothing.
    """
    begun, pace = time.monotonic(), pace_on(device)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        words, vae = parts.tokenizer(), parts.autoencoder()
        encoder, dit = parts.text_encoder(words, plan.geometry.slots), parts.transformer(plan.geometry)
    if begin is not None:
        autoencoder = begin
        _take_over(encoder, begin / "text_encoder")
        _take_over(dit, begin / "transformer")
    encoder, dit = encoder.to(device), dit.to(device)

    def stage(name: str, learning: dict[str, nn.Parameter], loss: Any, loop: LoopConfig) -> bool:
        left = max(0.0, seconds - (time.monotonic() - begun))
        log = train(
            learning, loss, folder / name, loop, stop_after=left,
            progress=lambda step, value: tell(name, step, loop.steps, value),
        )  # fmt: skip
        return log.done

    if autoencoder is not None:
        vae = type(vae).from_pretrained(autoencoder, subfolder="vae", use_safetensors=True)
    vae = vae.to(device)
    if autoencoder is None and not stage("pictures", dict(vae.named_parameters()), Seeing(vae, pace).loss, pace.seeing):
        return False
    if autoencoder is None:
        measure_latents(vae, pictures(1_000, seed=1))
    drawing = Drawing(vae.eval(), dit, encoder, words, plan, pace, folder)
    if plan.frozen_text and not stage("reading", dict(encoder.named_parameters()), drawing.reading_loss, pace.reading):
        return False
    learning = dict(dit.named_parameters()) | ({} if plan.frozen_text else dict(encoder.model.named_parameters()))
    drawn = pace.settling if begin else replace(pace.drawing, steps=round(plan.share * pace.drawing.steps))
    if not stage("settling" if begin else "drawing", learning, drawing.loss, drawn):
        return False
    save(parts.pipeline(vae, encoder.eval(), words, dit.eval()), folder / "model", plan.geometry.slots)
    return True


def _take_over(part: nn.Module, folder: Path) -> None:
    """Give a part the weights in a folder."""
    for file in folder.glob("*.safetensors"):
        # What is tied to other weights is not in the file.
        part.load_state_dict({name: value.float() for name, value in load_file(file).items()}, strict=False)


def save(pipeline: Any, folder: Path, slots: int) -> None:
    """Write a pipeline with its settings, weights as float16."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    pipeline.to("cpu").to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    _forget_where(folder / "vae" / "config.json")
    sampling = {"steps": 4, "slots": slots, "layers": list(range(1, ENCODER_LAYERS + 1))}
    (folder / SETTINGS).write_text(json.dumps(sampling) + "\n", encoding="utf-8")


def _forget_where(config: Path) -> None:
    """The library notes the folder that a part was loaded from, which nobody else has."""
    said = json.loads(config.read_text(encoding="utf-8"))
    said.pop("_name_or_path", None)
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
