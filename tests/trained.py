"""A tiny Llama that has really learned subject-verb agreement across a distracting noun, and pairs to study it with.

folder = train(Path("agreement"))                  # config.json, safetensors, tokenizer; some seconds on one thread
write_pairs(Path("pairs.jsonl"))                   # "the keys near the door" -> " are", three templates, 48 lines
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NOUNS = [("key", "keys"), ("dog", "dogs"), ("book", "books"), ("cup", "cups"), ("girl", "girls"), ("tree", "trees")]
HOSTILE = ("<script>alert(1)</script>", '"onmouseover="alert(2)', "</script><b>bold</b>", "&lt;i&gt;")
DISTRACTORS = ["door", "doors", "wall", "walls", "river", "rivers", *HOSTILE]
TEMPLATES = {
    "near": "the {subject} near the {other}",
    "today": "today the {subject} beside one {other}",
    "think": "I think that the {subject} by the {other}",
}
VERBS = ("is", "are")
_FILLERS = ["the", "near", "today", "beside", "one", "I", "think", "that", "by", "is", "are"]
WORDS = ["<unk>", "</s>", *_FILLERS, *[word for noun in NOUNS for word in noun], *DISTRACTORS]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; hostile words are words like any other."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def untrained(seed: int = 0) -> LlamaForCausalLM:
    """The same architecture, before any training."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1, bos_token_id=None, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """A model folder as users have them: config, safetensors, tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def with_weights_changed(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a model folder whose tensors `change` has altered in place."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def train(folder: Path, *, steps: int = 90, seed: int = 0) -> Path:
    """Train on three of four sentences, check that the verb agrees in all of them, and save.

    Raises:
        AssertionError: fewer than 95 % of all sentences come out right, seen or not.
    """
    torch.set_num_threads(1)
    model = untrained(seed).train()
    sentences = [_sentences(template) for template in TEMPLATES.values()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(steps):
        ids, verbs, seen = sentences[step % len(sentences)]
        chosen = seen[torch.randint(len(seen), (48,))]
        logits = model(input_ids=ids[chosen], logits_to_keep=1).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, verbs[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = torch.cat([_right(model.eval(), ids, verbs) for ids, verbs, _ in sentences])
    assert right.float().mean() >= 0.95, f"only {right.float().mean():.0%} of the sentences were learned"
    return save(model, folder)


def write_pairs(path: Path, *, n: int = 48, swapped: bool = False, hostile: bool = False, seed: int = 0) -> Path:
    """`n` different pairs, both numbers and all templates in turn, spans as text; `swapped` exchanges the answers."""
    return write_lines(path, pair_lines(n, swapped=swapped, hostile=hostile, seed=seed))


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def pair_lines(n: int = 48, *, swapped: bool = False, hostile: bool = False, seed: int = 0) -> list[dict[str, object]]:
    """The lines of a pairs file as objects."""
    words = HOSTILE if hostile else tuple(word for word in DISTRACTORS if word not in HOSTILE)
    every = [(noun, other, plural) for noun in NOUNS for other in words for plural in (False, True)]
    Random(seed).shuffle(every)
    names = list(TEMPLATES)
    lines: list[dict[str, object]] = []
    for i in range(n):
        noun, other, plural = every[i // len(names)]
        name = names[i % len(names)]
        clean, counterfactual = (TEMPLATES[name].format(subject=noun[number], other=other) for number in (plural, not plural))
        answer, opposite = (f" {VERBS[number]}" for number in (plural != swapped, plural == swapped))
        lines.append({
            "clean": clean, "counterfactual": counterfactual, "answer": answer, "counterfactual_answer": opposite,
            "spans": {"subject": noun[plural], "other": other}, "template": name,
        })  # fmt: skip
    return lines


def _sentences(template: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every sentence's ids, its verb's id, and the rows to train on."""
    at = {word: i for i, word in enumerate(WORDS)}
    rows = [(noun[plural], other, plural) for noun in NOUNS for other in DISTRACTORS for plural in (0, 1)]
    ids = [[at[word] for word in template.format(subject=subject, other=other).split()] for subject, other, _ in rows]
    verbs = [at[("is", "are")[plural]] for _, _, plural in rows]
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(template)))
    return torch.tensor(ids), torch.tensor(verbs), shuffled[: 3 * len(rows) // 4]


def _right(model: LlamaForCausalLM, ids: torch.Tensor, verbs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, logits_to_keep=1).logits[:, -1].argmax(-1) == verbs
