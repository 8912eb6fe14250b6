"""What all contenders share: the subject, copies of it for those who rewire their model, and the prompts."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import mediant as md
from mediant.core.pair import Pair
from mediant.search.interchange import Interchanges
from mediant.subject import Subject
from mediant.subject.loading import wrap
from mediant.tasks.encode import PairBatch, encode
from mediant.tasks.interchange import abstraction_of, between

if TYPE_CHECKING:
    from benchmarks.race.peers.lens import Lens
    from benchmarks.race.peers.tracing import Tracing
    from benchmarks.race.peers.vene import Vene

# Only the last column's logits, and no cache: what our own forwards ask for, and peers' wherever they pass it on.
LAST = {"logits_to_keep": 1, "use_cache": False}


@dataclass(frozen=True, eq=False)
class Prompts:
    """Pairs as tokens: rows are pairs, all of one length, so no contender needs a mask."""

    pairs: tuple[Pair, ...]
    batch: PairBatch

    @property
    def ids(self) -> Tensor:
        """Tokens of the prompts that are patched."""
        return self.batch.base.ids

    @property
    def source(self) -> Tensor:
        """Tokens of the prompts that values are taken from."""
        return self.batch.source.ids

    @property
    def n_cols(self) -> int:
        """Tokens of a prompt."""
        return self.batch.base.n_cols

    @property
    def first(self) -> int:
        """The first column that differs in any pair."""
        return int(self.batch.first_difference.min())

    @cached_property
    def _answers(self) -> tuple[Tensor, Tensor]:
        right, wrong = (torch.tensor(ids)[:, 0] for ids in (self.batch.answers, self.batch.counterfactual_answers))
        return right, wrong

    def score(self, logits: Tensor) -> Tensor:
        """Logit difference per row of last logits (row, vocab); rows may be several copies of the pairs."""
        right, wrong = (ids.repeat(len(logits) // len(ids)) for ids in self._answers)
        rows = torch.arange(len(logits))
        return (logits[rows, right] - logits[rows, wrong]).double()


class Arena:
    """The subject and what is asked of it. Peers are imported and given their model when first asked for."""

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        found = md.load("smollm2-135m")
        assert isinstance(found, Subject)
        self.subject = found
        self.subject.model.requires_grad_(False)
        hand_over_whole(self.subject.model)

    def prompts(self, n: int) -> Prompts:
        """Indirect-object pairs of one length whose names all differ, so that nearly all columns can be patched."""
        task = md.tasks.ioi.generate(
            n, single_token=self.subject.single_token, templates=["store"], counterfactual="abc", order="abba"
        )
        return Prompts(tuple(task.pairs), encode(self.subject, task.pairs))

    def interchanges(self, n: int, site: md.Site) -> Interchanges:
        """Items of the same form, ready for exchanges of the position variable at the last token."""
        task = md.tasks.ioi.generate(4 * n, single_token=self.subject.single_token, templates=["store"])
        items = between(abstraction_of("ioi"), "position", task.pairs, n)
        return Interchanges(self.subject, items, site, "last", batch_size=n)

    def assemble(self) -> None:
        """Import every peer and give it its model now, so that nobody's first run pays for it."""
        _ = self.lens, self.tracing, self.vene

    @cached_property
    def lens(self) -> "Lens":
        """TransformerLens."""
        from benchmarks.race.peers.lens import Lens

        return Lens(twin(self.subject.model), self.subject.tokenizer)

    @cached_property
    def tracing(self) -> "Tracing":
        """nnsight."""
        from benchmarks.race.peers.tracing import Tracing

        return Tracing(twin(self.subject.model), self.subject.tokenizer)

    @cached_property
    def vene(self) -> "Vene":
        """pyvene."""
        from benchmarks.race.peers.vene import Vene

        return Vene(twin(self.subject.model))

    @cached_property
    def ungrouped(self) -> Subject:
        """The same function with one key and value head per query head, for peers that take no grouped queries."""
        model = self.subject.model
        config = AutoConfig.from_pretrained(model.config._name_or_path)
        times, config.num_key_value_heads = config.num_attention_heads // config.num_key_value_heads, config.num_attention_heads
        weights = model.state_dict()
        for name in [n for n in weights if n.endswith(("k_proj.weight", "v_proj.weight"))]:
            weights[name] = weights[name].unflatten(0, (-1, config.head_dim)).repeat_interleave(times, 0).flatten(0, 1)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        made.load_state_dict(weights)
        made.config._name_or_path = model.config._name_or_path
        hand_over_whole(made)
        return wrap(made.requires_grad_(False), self.subject.tokenizer)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with weights of its own, for a peer that rewires what it is given."""
    return copy.deepcopy(model)


class Whole(nn.Linear):
    """An unembedding that makes its input contiguous first. A class, not a hook: one contender takes all hooks off its model."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous())


def hand_over_whole(model: PreTrainedModel) -> None:
    """Make the unembedding's input contiguous, for everybody alike.

    The library cuts the last column out of a batch and hands the unembedding a view, which torch multiplies row by row: with many
    rows, that alone would take longer than the layers. Who folds a sweep into large batches would lose by it.
    """
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear
    head.__class__ = Whole
