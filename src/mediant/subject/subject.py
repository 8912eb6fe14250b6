"""A `Subject` is a model under study: the untouched model, its tokenizer, and where its parts are.

lm = mediant.load("smollm2-135m")
batch = lm.encode(["When Mary and John went to the store, John gave a drink to"])
lm.family, lm.shape.n_layers, lm.generate(batch, max_new_tokens=3)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.core.errors import EditError, SubjectError, TaskError
from mediant.core.pair import Prompt
from mediant.subject.batch import Batch, Side, Tokens, bare_batch, collate, tokenize
from mediant.subject.cache import cache_among
from mediant.subject.families import Family
from mediant.subject.open_model import OpenModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False, kw_only=True)
class Subject(OpenModel):
    """A decoder-only language model with named parts."""

    tokenizer: "PreTrainedTokenizerBase"
    family: Family

    @cached_property
    def layers(self) -> list[nn.Module]:
        """Transformer blocks."""
        return self.family.layers_of(self.model)

    @property
    def base(self) -> nn.Module:
        """The module that loops over the layers."""
        return self.family.base_of(self.model)

    @property
    def text_config(self) -> Any:
        """Settings of the language model, which in models with eyes are a part of the whole."""
        config: Any = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def entry(self) -> nn.Module:
        """The module that is given token ids; in models of text alone the same one."""
        return self.family.entry_of(self.model)

    def tokenize(self, prompt: Prompt | str) -> Tokens:
        """Token ids and token spans of a prompt.

        Raises:
            SubjectError: a prompt with an image, which needs a subject with eyes.
        """
        if isinstance(prompt, Prompt) and prompt.image is not None:
            raise SubjectError(f"{self.name} looks at no images; take a vision-language model, such as comic-vlm")
        return tokenize(self.tokenizer, prompt)

    def encode(self, prompts: Sequence[Prompt | str] | Prompt | str, *, side: Side = "left") -> Batch:
        """Tokenise and pad prompts on this subject's device."""
        prompts = [prompts] if isinstance(prompts, Prompt | str) else prompts
        return self.collate([self.tokenize(prompt) for prompt in prompts], side=side)

    def collate(self, items: Sequence[Tokens], *, side: Side = "left") -> Batch:
        """Pad tokenised prompts on this subject's device.

        Raises:
            TaskError: a prompt is longer than the model's positions.
        """
        limit = getattr(self.text_config, "max_position_embeddings", None)
        longest = max((len(item.ids) for item in items), default=0)
        if limit is not None and longest > limit:
            raise TaskError(f"a prompt of {longest} tokens exceeds the model's {limit} positions; shorten it")
        return collate(items, pad_id=self.pad_id, side=side).to(self.device)

    @property
    def pad_id(self) -> int:
        """Token id that fills padding; padding is masked, so any id serves."""
        tokenizer = self.tokenizer
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return int(found) if isinstance(found, int) else 0

    def single_token(self, text: str) -> bool:
        """Whether `text` (with its leading space) is exactly one token."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) == 1

    def continuation_ids(self, prompt: Prompt | str, answer: str) -> list[int]:
        """Token ids of `answer` as it continues `prompt`.

        Raises:
            TaskError: the answer is empty or merges with the prompt's last token.
        """
        prompt = prompt if isinstance(prompt, str) else prompt.text
        before = list(self.tokenizer(prompt)["input_ids"])
        both = list(self.tokenizer(prompt + answer)["input_ids"])
        if both and both[-1] == self.tokenizer.eos_token_id and before and before[-1] == both[-1]:
            before, both = before[:-1], both[:-1]
        if len(both) <= len(before) or both[: len(before)] != before:
            hint = "" if answer[:1].isspace() or not answer else f"; did you mean {' ' + answer!r} (with a leading space)?"
            raise TaskError(f"answer {answer!r} is not a run of tokens after {prompt[-40:]!r}{hint}")
        return both[len(before) :]

    def unembed(self, hidden: Float[Tensor, "*n d_model"], *, keep: int | None = None) -> Float[Tensor, "*m vocab"]:
        """Logits of residual-stream vectors: the model's own final norm, unembedding and cap.

        Args:
            keep: of shape (batch, pos, d_model), only the last so many positions.
        """
        normed = self.family.final_norm_of(self.model)(hidden)
        # Contiguous, or torch multiplies row by row and reads the matrix for each.
        logits: Tensor = self.family.unembed_of(self.model)(normed if keep is None else normed[:, -keep:].contiguous())
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def generate(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        use_cache: bool = True,
        stop_at_eos: bool = True,
        watch: Callable[[Int[Tensor, "batch new"]], bool] | None = None,
    ) -> Int[Tensor, "batch new"]:
        """Greedy continuation of a left-padded batch, under whatever edits are active.

        Args:
            watch: called after every new token with all of them so far; what it returns says whether to stop.

        Raises:
            SubjectError: the batch is padded on the right.
        """
        if not bool(batch.mask[:, -1].all()):
            raise SubjectError('generation needs prompts that end together: encode them with side="left"')
        eos = self.tokenizer.eos_token_id if stop_at_eos else None
        with torch.no_grad(), self.reading(batch):
            model: Any = self.model
            ids: Tensor = model.generate(
                batch.ids, attention_mask=batch.mask.long(), **batch.inputs, do_sample=False, use_cache=use_cache,
                max_new_tokens=max_new_tokens, min_new_tokens=None if stop_at_eos else max_new_tokens,
                pad_token_id=self.pad_id, eos_token_id=eos,
                stopping_criteria=None if watch is None else [_watching(watch, batch.n_cols)],
            )  # fmt: skip
        new = ids[:, batch.n_cols :]
        self.work.token_layers += self._generation_work(batch, new.shape[1], use_cache)
        return new

    def _generation_work(self, batch: Batch, new: int, use_cache: bool) -> int:
        """Tokens x layers: the prompt, then every generated token but the last, again and again without a cache."""
        longer = range(batch.n_cols, batch.n_cols + new)
        tokens = batch.n_cols + new - 1 if use_cache else sum(longer)
        return batch.n_rows * tokens * self.shape.n_layers

    def feed(self, batch: Batch) -> dict[str, Tensor]:
        """What the model's forward is given for a whole batch."""
        own = {} if self.family.own_positions else {"position_ids": batch.position_ids}
        return {"input_ids": batch.ids, "attention_mask": batch.mask.long(), **own, **batch.inputs}

    def note_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note which columns the forward that begins covers, from what its entry is given.

        Raises:
            EditError: it is given embeddings instead of token ids.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = cache_among(kwargs)
        if ids is None:
            raise EditError("edits need input_ids: a forward from inputs_embeds has no tokens to resolve spans on")
        self.observe(ids, kwargs.get("attention_mask"), 0 if cache is None else cache.get_seq_length())

    def observe(self, ids: Tensor, mask: Tensor | None, offset: int) -> None:
        """Note the columns a forward covers."""
        window = self.window
        window.written.clear()
        if window.batch is None or (offset == 0 and not window.declared):
            window.batch = bare_batch(ids, mask)
        window.offset, window.width = offset, ids.shape[1]


def _watching(watch: Callable[[Tensor], bool], n_cols: int) -> Callable[..., Tensor]:
    """A stopping criterion of the library's that hands on the new tokens."""

    def called(ids: Tensor, _: object, **__: object) -> Tensor:
        return torch.full((ids.shape[0],), watch(ids[:, n_cols:]), dtype=torch.bool, device=ids.device)

    return called
