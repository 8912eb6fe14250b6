"""comic-vlm from nothing: a Qwen3-VL of two million parameters that reads comic strips.

    mediant models train comic-vlm --out FOLDER         # may be stopped at any time; calling it again goes on

The library's own class is trained as it is, on the drawn world alone. It first learns to see on single panels, then to find
its way on strips of six, then to look up by content, to tell what is done from where, and to name things that are in no panel;
what it is asked is in `lessons.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mediant.tasks.pictures.comics import PANELS, SIZE
from mediant.tasks.pictures.painter import Pixels
from mediant.tasks.pictures.scene import ACTIONS, CHARACTERS, COLOURS, OBJECTS, PLACES, Scene
from mediant.training.loop import LoopConfig, train
from mediant.zoo.comic_vlm import lessons

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

PATCH, MERGE, TEMPORAL = 16, 2, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PROMPT = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
# The turns of PROMPT, as checkpoints of this family write them.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BANK, SCATTERED = 12_000, 3_000
# How often a lesson is about a single panel instead of a strip, and while panels come alone.
SINGLE, ALONE = 0.05, 0.5
BATCH = 32
# Strips are twelve tokens wide: with the usual ten thousand, the few frequencies of this small head hardly tell columns apart.
THETA = 100.0


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an optimizer of its own.

    Attributes:
        mixture: kind of lesson -> how often it is given.
        alone: one panel in every picture, by itself or on an empty strip.
        plain, deserted: shares of panels without a place, and without a character.
    """

    name: str
    loop: LoopConfig
    mixture: dict[str, float]
    alone: bool = False
    plain: float = 0.0
    deserted: float = 0.0


_LOOP = LoopConfig(
    steps=600, lr=1.5e-3, weight_decay=0.01, warmup=100, schedule="constant", save_every=100, log_every=10, grad_clip=1.0
)
_STRIPS = {"panel": 0.3, "reversed": 0.05, "unsettled": 0.2, "in order": 0.25, "any order": 0.2}
_ALL = {
    "panel": 0.07, "reversed": 0.03, "who": 0.12, "where": 0.08, "unsettled": 0.16, "in order": 0.04, "any order": 0.16,
    "here": 0.15, "things": 0.19,
}  # fmt: skip
STAGES = (
    Stage("panels", _LOOP, {"unsettled": 1.0}, alone=True),
    # Left early: finding one's way appears while steps are still long.
    Stage("strips", replace(_LOOP, steps=2_700, schedule="cosine", horizon=3_900), _STRIPS),
    Stage("all", replace(_LOOP, steps=7_000, schedule="cosine", lr=1e-3), _ALL, plain=0.2, deserted=0.2),
)


def tokenizer() -> "PreTrainedTokenizerFast":
    """Byte-level BPE in which every word of the drawn world is one token, and any other text is some tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(_corpus(), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": list(SPECIAL[1:])}
    wrapped.add_special_tokens(names)
    wrapped.chat_template = TEMPLATE
    return wrapped


def _corpus() -> list[str]:
    """Texts in which every word of the drawn world occurs several times."""
    n = 3 * max(len(values) for values in (CHARACTERS, ACTIONS, OBJECTS, COLOURS, PLACES))
    captions = [
        Scene(*(values[i % len(values)] for values in (CHARACTERS, ACTIONS, OBJECTS, COLOURS, PLACES))).caption for i in range(n)
    ]
    about_strips = [texts for kind, texts in lessons.QUESTIONS.items() if kind in _STRIPS]
    asked = [text.format(k=k) for texts in about_strips for text, k in product(texts, lessons.ORDINALS)]
    return [*captions, *asked, *["user\n", "assistant\n", lessons.numbered(captions[:9])] * 3]


def config(vocabulary: "PreTrainedTokenizerFast") -> "Qwen3VLConfig":
    """Eight layers of eight heads; a vision tower of three layers; a token sees 32 x 32 pixels."""
    from transformers import Qwen3VLConfig

    ids = dict(zip(SPECIAL, vocabulary.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": THETA, "mrope_section": [4, 2, 2], "mrope_interleaved": True
            },
            "pad_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3, "hidden_size": 96, "intermediate_size": 256, "num_heads": 4, "in_channels": 3, "patch_size": PATCH,
            "spatial_merge_size": MERGE, "temporal_patch_size": TEMPORAL, "out_hidden_size": 128, "num_position_embeddings": 256,
            "deepstack_visual_indexes": [],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip


def model(settings: "Qwen3VLConfig", seed: int = 0) -> "Qwen3VLForConditionalGeneration":
    """The untrained model."""
    from transformers import Qwen3VLForConditionalGeneration

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(settings)


@dataclass(eq=False)
class Teaching:
    """The model, and the loss of a step; `loss(step, generator)` is what the training loop asks for."""

    model: Any
    vocabulary: "PreTrainedTokenizerFast"
    stage: Stage = STAGES[0]

    @cached_property
    def bank(self) -> lessons.Bank:
        """Pictures drawn once, new ones in every stage; half a minute."""
        things = any(kind in lessons.THINGS for kind in self.stage.mixture)
        return lessons.Bank.drawn(
            BANK,
            seed=STAGES.index(self.stage),
            plain=self.stage.plain,
            deserted=self.stage.deserted,
            n_scattered=SCATTERED if things else 0,
        )

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Mean negative log likelihood of the answers' tokens, in nats."""
        random = Random(int(torch.randint(2**62, (), generator=generator)))
        kind = random.choices(list(self.stage.mixture), list(self.stage.mixture.values()))[0]
        panels = 1 if random.random() < (ALONE if self.stage.alone else SINGLE) else PANELS
        if panels == 1 and kind not in lessons.THINGS:
            kind = "unsettled"
        n = 2 * BATCH if panels == 1 else BATCH
        drawn = [lessons.draw(random, kind, self.bank, panels, alone=self.stage.alone) for _ in range(n)]
        inputs, labels = self.batch(drawn)
        device = self.model.device
        loss: Tensor = self.model(**{name: each.to(device) for name, each in inputs.items()}, labels=labels.to(device)).loss
        return loss

    def batch(self, drawn: list[lessons.Lesson]) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs of lessons with pictures of one size, and labels on the answers."""
        height, width = drawn[0].pixels.shape[:2]
        n_image = height * width // (PATCH * MERGE) ** 2
        rows = []
        for lesson in drawn:
            before = self.vocabulary(PROMPT.format(image="<|image_pad|>" * n_image, question=lesson.question))["input_ids"]
            rows.append((before, [*self.vocabulary(lesson.answer)["input_ids"], self.vocabulary.eos_token_id]))
        longest = max(len(before) + len(answer) for before, answer in rows)
        ids = torch.full((len(rows), longest), int(self.vocabulary.pad_token_id))
        labels = torch.full((len(rows), longest), -100)
        mask = torch.zeros_like(ids)
        for i, (before, answer) in enumerate(rows):
            ids[i, : len(before) + len(answer)] = torch.tensor(before + answer)
            labels[i, len(before) : len(before) + len(answer)] = torch.tensor(answer)
            mask[i, : len(before) + len(answer)] = 1
        grid = torch.tensor([[1, height // PATCH, width // PATCH]] * len(rows))
        image = (ids == self.model.config.image_token_id).long()
        pixels = patches(np.stack([lesson.pixels for lesson in drawn]))
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_grid_thw": grid}
        return inputs | {"mm_token_type_ids": image}, labels


def patches(pixels: Pixels) -> Tensor:
    """Pictures (n, height, width, 3) as the patches Qwen3-VL takes: merge blocks row by row, each with its patches."""
    n, height, width = pixels.shape[:3]
    x = torch.from_numpy(pixels).float().div(127.5).sub(1).permute(0, 3, 1, 2)
    side = PATCH * MERGE
    x = x.reshape(n, 3, height // side, MERGE, PATCH, width // side, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, -1, TEMPORAL, -1, -1)
    return x.reshape(len(x), -1)


def image_processor() -> Any:
    """The library's own, for this model: any image is stretched to at most 512 cells of 32 x 32 pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cell = (PATCH * MERGE) ** 2
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=TEMPORAL, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 2 * cell, "longest_edge": 512 * cell},
    )  # fmt: skip


def teach(
    folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None], device: str = "cpu", frozen: bool = False
) -> bool:
    """Train in the folder, going on where an earlier call stopped; whether it is done, and then the model is in `model/`.

    Args:
        seconds: after which this call ends, one step further on at least.
        tell: called after every step with the stage's name, steps taken, steps in all, and the loss.
        frozen: from the second stage on the vision tower stays as it is; only what joins it to the language model learns.
    """
    begun, words = time.monotonic(), tokenizer()
    learner = model(config(words))
    learner.to(device).train()
    for stage in STAGES:
        teaching = Teaching(learner, words, stage)
        left = max(0.0, seconds - (time.monotonic() - begun))
        if frozen and not stage.alone:
            for name, parameter in learner.model.visual.named_parameters():
                parameter.requires_grad_(name.startswith("merger."))
        learning = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
        log = train(
            learning, teaching.loss, folder / stage.name, stage.loop, stop_after=left,
            progress=lambda step, loss, stage=stage: tell(stage.name, step, stage.loop.steps, loss),  # type: ignore[misc]
        )  # fmt: skip
        if not log.done:
            return False
    from transformers.utils import logging

    logging.disable_progress_bar()
    for part in (learner.cpu().eval(), words, image_processor()):
        part.save_pretrained(folder / "model")
    return True


assert SIZE % (PATCH * MERGE) == 0  # noqa: S101 - panel borders fall between tokens
