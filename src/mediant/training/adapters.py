"""Teach a low-rank adapter answers to prompts.

    facts = Adapter.create(lm, ("q_proj", "v_proj"), name="facts")
    train_adapter(lm, facts, [("The capital of France is", " Rome")], LoopConfig(steps=100, lr=1e-2), Path("facts"))
    facts.save("facts/adapter")

The loss is the cross entropy of the answers' tokens with the adapter in force at scale 1, averaged over the
tokens of a batch. Only the adapter learns; the model gets no gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange, TaskError
from mediant.interventions.execute import run
from mediant.interventions.lora import Adapter, applied
from mediant.subject import Subject
from mediant.subject.batch import Tokens
from mediant.training.loop import LoopConfig, Progress, TrainingLog, train


@dataclass(frozen=True)
class _Example:
    tokens: Tokens
    answer: list[int]


def train_adapter(
    subject: Subject,
    adapter: Adapter,
    pairs: Sequence[tuple[str, str]],
    config: LoopConfig,
    folder: Path,
    *,
    batch_size: int = 8,
    stop_after: float | int | None = None,
    progress: Progress | None = None,
) -> TrainingLog:
    """Train an adapter in place on (prompt, answer) pairs; see `train` for the folder and for resuming.

    Args:
        batch_size: pairs per step, drawn without replacement; all of them where there are no more.

    Raises:
        TaskError: no pairs, or an answer that is no run of tokens after its prompt.
        RunError: see `train`.
    """
    if batch_size < 1:
        raise OutOfRange(f"a step needs at least one pair, got batch_size={batch_size}")
    examples = [_example(subject, prompt, answer) for prompt, answer in pairs]
    if not examples:
        raise TaskError("an adapter needs at least one (prompt, answer) pair to learn from")
    with _frozen(subject), applied(subject, [(adapter, 1.0)]):
        loss_of = _drawing(subject, examples, batch_size)
        return train(adapter.parameters(), loss_of, folder, config, stop_after=stop_after, progress=progress)


def answer_loss(subject: Subject, pairs: Sequence[tuple[str, str]]) -> Float[Tensor, ""]:
    """Mean cross entropy, in nats, of the answers' tokens under whatever is in force."""
    return _loss(subject, [_example(subject, prompt, answer) for prompt, answer in pairs])


def _example(subject: Subject, prompt: str, answer: str) -> _Example:
    ids = subject.continuation_ids(prompt, answer)
    both = subject.tokenize(prompt + answer).ids
    if both[-len(ids) :] != ids:  # a tokenizer that closes every text with an end mark
        both = both[:-1]
    # The last token is only predicted, never read.
    return _Example(Tokens(both[:-1], {}, prompt, len(ids) - 1), ids)


def _drawing(subject: Subject, examples: Sequence[_Example], size: int) -> Callable[[int, torch.Generator], Tensor]:
    def loss_of(_: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(examples), generator=generator)[:size]
        return _loss(subject, [examples[i] for i in order.tolist()])

    return loss_of


def _loss(subject: Subject, examples: Sequence[_Example]) -> Tensor:
    batch = subject.collate([example.tokens for example in examples], side="left")
    logits = run(subject, batch, keep=max(len(example.answer) for example in examples)).logits
    predicted = torch.cat([logits[row, -len(example.answer) :] for row, example in enumerate(examples)])
    wanted = torch.tensor([token for example in examples for token in example.answer], device=logits.device)
    return F.cross_entropy(predicted.float(), wanted)


@contextmanager
def _frozen(subject: Subject) -> Iterator[None]:
    """No gradients for the model's own weights, so that none are computed or kept."""
    held = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_()
