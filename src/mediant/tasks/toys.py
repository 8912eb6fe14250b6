"""Planted toy transformers: hand-set weights, so that what a method *should* find is known.

    toy = plant("backup")
    toy.subject, toy.pairs, toy.mediators        # mediators: the heads that carry the answer, by construction

Each reads two bits and says yes or no: `a1 b0 =`. One head moves bit a to the last token, another bit b, and
what happens there differs:

    single      yes = a; nothing else matters
    linear      a weighted sum of both bits through two linear layers; effects add up exactly
    and, or     an MLP combines the bits
    backup      a later head moves bit a only when the first one has not ("self-repair")
    cancelling  two heads write opposite amounts; a third, half as strong, decides

The modules follow the calling conventions of transformers' decoders (layers take hidden states, a mask and a
key/value cache), so every intervention runs on them unchanged. There are no norms, and attention logits are so
far apart that the softmax is exactly one-hot.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mediant.core.edge import CircuitEdge
from mediant.core.errors import unknown
from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.subject import Subject, wrap

VOCABULARY = ("a0", "a1", "b0", "b1", "=", "no", "yes")
VA, VB, P0, P1, P2, CONST, A, B, OUT, SPARE = range(10)
D_MODEL, D_HEAD, N_HEADS, D_MLP = 10, 2, 3, 4
SHARP = 400.0


@dataclass
class ToyConfig:
    """The few fields of a library config that a subject reads."""

    num_hidden_layers: int
    model_type: str = "toy"
    hidden_size: int = D_MODEL
    num_attention_heads: int = N_HEADS
    head_dim: int = D_HEAD
    intermediate_size: int = D_MLP
    vocab_size: int = len(VOCABULARY)
    _attn_implementation: str = "eager"


def eager_attention_forward(
    module: nn.Module,  # noqa: ARG001 - the signature of attention functions
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out; the mask is added to the logits."""
    weights = (query @ key.mT * scaling + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class ToyAttention(nn.Module):
    """Plain causal attention without rotation."""

    def __init__(self, layer_idx: int, config: ToyConfig) -> None:
        super().__init__()
        width = N_HEADS * D_HEAD
        self.layer_idx, self.config = layer_idx, config
        self.q, self.k, self.v = (nn.Linear(D_MODEL, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, D_MODEL, bias=False)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, past_key_values: Any = None) -> Tensor:
        """Mix values by attention; `attention_mask` is added to the logits."""
        q, k, v = (p(hidden_states).unflatten(-1, (-1, D_HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed: Tensor = self.o(attend(self, q, k, v, attention_mask, scaling=1.0)[0].flatten(-2))
        return mixed


class ToyMLP(nn.Module):
    """`down(activation(up(x)))`; the identity activation makes the whole network linear."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D_MODEL, D_MLP, bias=False), nn.Linear(D_MLP, D_MODEL, bias=False)
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Position-wise map."""
        out: Tensor = self.down(self.activation(self.up(hidden_states)))
        return out


class ToyLayer(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, layer_idx: int, config: ToyConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.Identity(), ToyAttention(layer_idx, config), ToyMLP(activation)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, past_key_values: Any = None) -> Tensor:
        """One block."""
        hidden_states = hidden_states + self.attn(self.norm(hidden_states), attention_mask, past_key_values)
        out: Tensor = hidden_states + self.mlp(hidden_states)
        return out


class ToyEmbedding(nn.Module):
    """Token features plus one-hot positions and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(len(VOCABULARY), D_MODEL), nn.Embedding(8, D_MODEL)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Residual stream entering layer 0."""
        both: Tensor = self.token(input_ids) + self.position(position_ids)
        return both


class ToyBase(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ToyConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = ToyEmbedding()
        self.layers = nn.ModuleList(ToyLayer(i, config, activation) for i in range(config.num_hidden_layers))
        self.norm = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any = None) -> Tensor:
        """Residual stream leaving the last layer."""
        hidden = self.embed(input_ids, position_ids)
        n_keys, n = attention_mask.shape[1], input_ids.shape[1]
        query, key = torch.arange(n_keys - n, n_keys)[:, None], torch.arange(n_keys)
        keep = ((key <= query) & attention_mask.bool()[:, None]) | (key == query)
        mask = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)[:, None]
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=past_key_values)
        out: Tensor = self.norm(hidden)
        return out


class ToyModel(nn.Module):
    """A causal language model of two bits."""

    def __init__(self, n_layers: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config = ToyConfig(n_layers)
        self.model = ToyBase(self.config, activation)
        self.unembed = nn.Linear(D_MODEL, len(VOCABULARY), bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,  # noqa: ARG002 - callers of causal models pass it
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        """Logits of the last `logits_to_keep` positions (0: all)."""
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values
        )
        return SimpleNamespace(logits=self.unembed(hidden[:, -logits_to_keep:]))


@dataclass(frozen=True, eq=False)
class Toy:
    """A planted subject, its pairs, and the heads and edges through which bits reach the answer by construction.

    Attributes:
        places: the span at which each of the edges is read: "a", "b" or "last".
    """

    subject: Subject
    pairs: tuple[Pair, ...]
    mediators: tuple[Site, ...]
    roles: Mapping[str, Site] = field(default_factory=dict)
    edges: tuple[CircuitEdge, ...] = ()
    places: tuple[str, ...] = ()


def _skeleton(n_layers: int, activation: Callable[[Tensor], Tensor] = torch.relu) -> ToyModel:
    """All weights zero, except embeddings and the reading of OUT: yes = OUT - 0.5, no = 0.5 - OUT."""
    model = ToyModel(n_layers, activation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        token, position = model.model.embed.token.weight, model.model.embed.position.weight
        token[VOCABULARY.index("a1"), VA] = 1
        token[VOCABULARY.index("b1"), VB] = 1
        for place, dim in enumerate((P0, P1, P2)):
            position[place, dim] = 1
        position[:, CONST] = 1
        yes, no = VOCABULARY.index("yes"), VOCABULARY.index("no")
        model.unembed.weight[yes, OUT], model.unembed.weight[no, OUT] = 1, -1
        model.unembed.weight[yes, CONST], model.unembed.weight[no, CONST] = -0.5, 0.5
    return model


def _layer(model: ToyModel, layer: int) -> ToyLayer:
    found = model.model.layers[layer]
    if not isinstance(found, ToyLayer):
        raise TypeError(f"layer {layer} is a {type(found).__name__}")
    return found


def _mover(model: ToyModel, layer: int, head: int, *, where: int, reads: int, writes: int, amount: float = 1.0) -> None:
    """A head that attends to the token at position feature `where` and copies feature `reads` into `writes`."""
    attn, row = _layer(model, layer).attn, head * D_HEAD
    with torch.no_grad():
        attn.q.weight[row, CONST] = SHARP
        attn.k.weight[row, where] = 1
        attn.v.weight[row, reads] = 1
        attn.o.weight[writes, row] = amount


def _neuron(model: ToyModel, layer: int, index: int, reads: Mapping[int, float], amount: float) -> None:
    with torch.no_grad():
        for dim, weight in reads.items():
            _layer(model, layer).mlp.up.weight[index, dim] = weight
        _layer(model, layer).mlp.down.weight[OUT, index] = amount


def _single() -> tuple[ToyModel, dict[str, Site]]:
    model = _skeleton(1)
    _mover(model, 0, 0, where=P0, reads=VA, writes=OUT)
    _mover(model, 0, 1, where=P1, reads=VB, writes=SPARE)
    return model, {"mover": Site("head_z", 0, 0)}


def _linear() -> tuple[ToyModel, dict[str, Site]]:
    model = _skeleton(2, activation=nn.Identity())
    _mover(model, 0, 0, where=P0, reads=VA, writes=A)
    _mover(model, 0, 1, where=P1, reads=VB, writes=OUT, amount=0.5)
    _neuron(model, 0, 0, {A: 0.75, CONST: 0.25}, 1.0)
    _mover(model, 1, 2, where=P2, reads=A, writes=OUT, amount=-2.0)
    return model, {"a": Site("head_z", 0, 0), "b": Site("head_z", 0, 1), "late": Site("head_z", 1, 2)}


def _both_bits() -> ToyModel:
    model = _skeleton(1)
    _mover(model, 0, 0, where=P0, reads=VA, writes=A)
    _mover(model, 0, 1, where=P1, reads=VB, writes=B)
    return model


def _and() -> tuple[ToyModel, dict[str, Site]]:
    model = _both_bits()
    _neuron(model, 0, 0, {A: 1, B: 1, CONST: -1}, 1.0)
    return model, {"a": Site("head_z", 0, 0), "b": Site("head_z", 0, 1)}


def _or() -> tuple[ToyModel, dict[str, Site]]:
    model = _both_bits()
    _neuron(model, 0, 0, {A: 1, B: 1}, 1.0)
    _neuron(model, 0, 1, {A: 1, B: 1, CONST: -1}, -1.0)
    return model, {"a": Site("head_z", 0, 0), "b": Site("head_z", 0, 1)}


def _backup() -> tuple[ToyModel, dict[str, Site]]:
    model = _skeleton(2)
    _mover(model, 0, 0, where=P0, reads=VA, writes=A)
    _neuron(model, 0, 0, {A: 1}, 1.0)
    _mover(model, 1, 1, where=P0, reads=VA, writes=OUT)
    with torch.no_grad():
        # Attention to the first token turns strongly negative once the first head has written.
        _layer(model, 1).attn.q.weight[D_HEAD, A] = -2 * SHARP
    return model, {"primary": Site("head_z", 0, 0), "backup": Site("head_z", 1, 1)}


def _cancelling() -> tuple[ToyModel, dict[str, Site]]:
    model = _skeleton(1)
    for head, amount in enumerate((2.0, -2.0, 1.0)):
        _mover(model, 0, head, where=P0, reads=VA, writes=OUT, amount=amount)
    return model, {"plus": Site("head_z", 0, 0), "minus": Site("head_z", 0, 1), "decides": Site("head_z", 0, 2)}


TOYS: dict[str, Callable[[], tuple[ToyModel, dict[str, Site]]]] = {
    "single": _single, "linear": _linear, "and": _and, "or": _or, "backup": _backup, "cancelling": _cancelling,
}  # fmt: skip


# Edges along which a bit travels to the answer, and at which token they are read, as the weights above say.
EDGES: dict[str, str] = {
    "single": "embed->v.0.0@a head_result.0.0->final_resid@last",
    "linear": "embed->v.0.0@a embed->v.0.1@b head_result.0.0->mlp_in.0@last mlp_out.0->final_resid@last "
    "head_result.0.1->final_resid@last head_result.0.0->v.1.2@last head_result.1.2->final_resid@last",
    "and": "embed->v.0.0@a embed->v.0.1@b head_result.0.0->mlp_in.0@last head_result.0.1->mlp_in.0@last "
    "mlp_out.0->final_resid@last",
    "or": "embed->v.0.0@a embed->v.0.1@b head_result.0.0->mlp_in.0@last head_result.0.1->mlp_in.0@last "
    "mlp_out.0->final_resid@last",
    "backup": "embed->v.0.0@a head_result.0.0->mlp_in.0@last mlp_out.0->final_resid@last head_result.0.0->q.1.1@last "
    "embed->v.1.1@a head_result.1.1->final_resid@last",
    "cancelling": "embed->v.0.0@a embed->v.0.1@a embed->v.0.2@a head_result.0.0->final_resid@last "
    "head_result.0.1->final_resid@last head_result.0.2->final_resid@last",
}


def plant(name: str) -> Toy:
    """Build a planted subject with its pairs (clean `a1 b1 =`, counterfactual `a0 b0 =`).

    Raises:
        UnknownName: no toy of that name.
    """
    if name not in TOYS:
        raise unknown("toy", name, TOYS)
    model, roles = TOYS[name]()
    clean, other = Prompt("a1 b1 =", {"a": (0, 2), "b": (3, 5)}), Prompt("a0 b0 =", {"a": (0, 2), "b": (3, 5)})
    pairs = (Pair(f"{name}-0", clean, other, " yes", " no", "toy"),)
    edges, places = zip(*(text.split("@") for text in EDGES[name].split()), strict=True)
    parsed = tuple(CircuitEdge.parse(text) for text in edges)
    return Toy(wrap(model, tokenizer(), name=f"toy-{name}"), pairs, tuple(roles.values()), roles, parsed, tuple(places))


def tokenizer() -> Any:
    """One token per word of `VOCABULARY`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="="))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="=", pad_token="=")  # noqa: S106
