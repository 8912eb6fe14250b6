"""What the residual stream already says: the logit lens, and direct logit attribution.

    lens = logit_lens(lm, lm.encode("When Mary and John went to the store, John gave a drink to"))
    lens.words(3)                    # likeliest three tokens after the embedding and after every layer
    lens.rank_of([" Mary"])          # (depth, token); rank 0 is the model's pick at that depth

    parts = direct_logit_attribution(lm, encode(lm, pairs))
    parts.ranking().top(5)           # the components that write most for or against the answer

The lens (nostalgebraist 2020, "interpreting GPT: the logit lens") applies the model's own final norm and
unembedding to every layer's residual stream. A layer never trained to be read there may hold a token in another
form, so absence in the lens is no evidence of absence.

Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits") uses that the
final residual stream is a sum of what each component wrote. The final norm divides by a number computed from the
whole sum; with this *scale frozen* at the value it had in this run, the norm is affine and the logit difference is
exactly the sum of one contribution per component. Freezing means that a contribution is a bookkeeping entry of
this one run: a direct contribution is not an effect. Removing the component would change the scale and whatever
later components read from it; `mediant.search.patching` measures that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.core.errors import OutOfRange, SpanError, SubjectError, TaskError, unknown
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.execute import run
from mediant.interventions.taps import head_weight
from mediant.measures.effects import cluster_labels
from mediant.measures.intervals import Array, estimate
from mediant.measures.metrics import Outcome, logit_diff
from mediant.subject import Batch, Subject
from mediant.tasks.encode import PairBatch

CHUNK = 256
LAST = Span("last")


@dataclass(frozen=True, eq=False)
class LensResult:
    """Residual streams, turned into logits only when asked and `CHUNK` tokens at a time.

    Depth 0 is the embedding, depth `i` the stream after `i` layers.

    Attributes:
        labels: site of each depth; `embed`, then `resid_post.0` and on.
        hidden: residual stream per depth and token read.
        rows, cols: which row and column of the batch each token is.
    """

    subject: Subject
    labels: tuple[str, ...]
    hidden: Float[Tensor, "depth n d_model"]
    rows: Int[Tensor, " n"]
    cols: Int[Tensor, " n"]

    def logits(self, label: str) -> Float[Tensor, "n vocab"]:
        """Logits at one depth, by its label.

        Raises:
            UnknownName: no depth has this label.
        """
        if label not in self.labels:
            raise unknown("depth", label, self.labels)
        with torch.no_grad():
            return self.subject.unembed(self.hidden[self.labels.index(label)])

    def all_logits(self) -> Float[Tensor, "depth n vocab"]:
        """Logits of every depth at once: depth x n x vocabulary numbers."""
        return torch.stack([self.logits(label) for label in self.labels])

    def top(self, k: int = 5) -> tuple[Int[Tensor, "depth n k"], Float[Tensor, "depth n k"]]:
        """Ids of the `k` likeliest tokens, best first, and their log-probabilities (nats).

        Raises:
            OutOfRange: `k` is below 1 or beyond the vocabulary.
        """
        if not 1 <= k <= self.subject.shape.n_vocab:
            raise OutOfRange(f"asked for the top {k} of {self.subject.shape.n_vocab} tokens; k counts from 1")
        ids = self._read(lambda logits, _: logits.topk(k).indices)
        return ids, self._read(lambda logits, _: logits.log_softmax(-1).topk(k).values)

    def words(self, k: int = 5) -> list[list[list[str]]]:
        """Text of the `k` likeliest tokens, by depth and token read."""
        return [[[self.subject.decode([i]) for i in one] for one in depth] for depth in self.top(k)[0].tolist()]

    def logprob_of(self, tokens: Sequence[int | str]) -> Float[Tensor, "depth n"]:
        """Log-probability (nats) of one given token per token read; a single one serves for all."""
        ids = self._ids(tokens)
        return self._read(lambda logits, at: logits.log_softmax(-1).gather(-1, ids[at, None])[:, 0])

    def rank_of(self, tokens: Sequence[int | str]) -> Int[Tensor, "depth n"]:
        """How many tokens score higher than the given one; 0 means that it is the pick."""
        ids = self._ids(tokens)
        return self._read(lambda logits, at: (logits > logits.gather(-1, ids[at, None])).sum(-1))

    def _read(self, ask: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """One small answer per depth and token, never holding more than `CHUNK` rows of logits."""
        starts = range(0, self.hidden.shape[1], CHUNK)
        with torch.no_grad():
            return torch.stack([torch.cat([self._ask(ask, depth, start) for start in starts]) for depth in self.hidden])

    def _ask(self, ask: Callable[[Tensor, slice], Tensor], depth: Tensor, start: int) -> Tensor:
        at = slice(start, start + CHUNK)
        return ask(self.subject.unembed(depth[at]).float(), at).to(self.rows.device)

    def _ids(self, tokens: Sequence[int | str]) -> Tensor:
        n, given = len(self.rows), [self._id(token) for token in tokens]
        if len(given) not in (1, n):
            raise TaskError(f"expected one token for each of the {n} positions read, or a single one for all; got {len(given)}")
        return torch.tensor(given * n if len(given) == 1 else given, device=self.subject.device)

    def _id(self, token: int | str) -> int:
        if isinstance(token, str):
            ids = self.subject.tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise TaskError(f"{token!r} is {len(ids)} tokens, expected one; mind the leading space, or give a token id")
            return int(ids[0])
        if not 0 <= token < self.subject.shape.n_vocab:
            raise OutOfRange(f"token id {token} does not exist: this model has ids 0 to {self.subject.shape.n_vocab - 1}")
        return token


def logit_lens(subject: Subject, batch: Batch, span: Span | str = "last") -> LensResult:
    """Read every layer's residual stream with the model's own final norm and unembedding.

    One forward; the last depth gives the model's own logits. Kept are (layers + 1) x n x d_model numbers.

    Raises:
        SpanError: a span that a prompt does not define, or that covers none of its tokens.
    """
    place = Span.of(span)
    if not len(batch.locate(place)[0]):
        raise SpanError(f"span {place} covers no token of these prompts; the lens reads prompts, not generated text")
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(subject.shape.n_layers))]
    with torch.no_grad():
        found = run(subject, batch, capture=[(site, place) for site in sites]).captured
    last = found[sites[-1], place]
    # Layers of one model may live on several devices; the final norm's is where they are read.
    hidden = torch.stack([found[site, place].values.to(last.values.device) for site in sites])
    return LensResult(subject, ("embed", *map(str, sites[1:])), hidden, last.rows, last.cols)


@dataclass(frozen=True, eq=False)
class Attribution:
    """Direct contributions to the logit difference, in logits: they sum to `total` for every pair.

    Attributes:
        labels: `embed`, `head_result.L.H`, `attn_bias.L` (bias of the output projection), `mlp_out.L`,
            `final_norm_bias`, `unembed_bias`; biases appear only where the model has them.
        values: shape (component, pair); positive favours the answer.
        total: the model's logit difference per pair.
    """

    labels: tuple[str, ...]
    values: Array
    total: Array
    ids: tuple[str, ...]
    templates: tuple[str, ...]

    def of(self, label: str) -> Array:
        """One component's contribution per pair.

        Raises:
            UnknownName: no component has this label.
        """
        if label not in self.labels:
            raise unknown("component", label, self.labels)
        return np.asarray(self.values[self.labels.index(label)])

    def ranking(self, *, seed: int = 0) -> Ranking:
        """Components by |mean contribution|, with intervals where there are at least two pairs."""
        entries = [self._scored(label, values, seed) for label, values in zip(self.labels, self.values, strict=True)]
        return Ranking("component", entries, method="direct logit attribution, final norm's scale frozen (not an effect)")

    def _scored(self, label: str, values: Array, seed: int) -> Scored:
        if len(values) < 2:
            return Scored(label, float(values.mean()), None, len(values))
        found = estimate(values, clusters=cluster_labels(self.templates), seed=seed, draws=500)
        return Scored(label, found.value, found.ci95, found.n)


def direct_logit_attribution(subject: Subject, pairs: PairBatch) -> Attribution:
    """Split logit(answer) - logit(counterfactual answer) of the base prompts into what each component wrote.

    The final norm is frozen at this run's scale (see the module's text): one forward, no intervention, no effect.

    Raises:
        TaskError: an answer has several tokens.
        SubjectError: the final norm is of no known form, or the parts do not add up to the logits.
    """
    if pairs.rows_per_pair != 1:
        raise TaskError("direct logit attribution compares single tokens, but an answer has several; choose one-token answers")
    n_layers, final = subject.shape.n_layers, Site("final_resid")
    sites = [final, Site("resid_pre", 0), *(Site(kind, layer) for kind in ("head_z", "mlp_out") for layer in range(n_layers))]
    with torch.no_grad():
        out = run(subject, pairs.base, capture=[(site, LAST) for site in sites])
        found = {site: activation.values.float() for (site, _), activation in out.captured.items()}
        outcome = Outcome(pairs, out.logits.float())
        norm, readout = _readout(subject, outcome, out.captured[final, LAST].values)
        parts = dict(_written(subject, found, norm.pull_back(readout)))
        parts |= _constant(subject, outcome, norm, readout)
        total = _numbers(logit_diff(outcome))
    values = np.stack([_numbers(part) for part in parts.values()])
    _check_sum(values, total, subject.dtype)
    items = pairs.pairs
    return Attribution(tuple(parts), values, total, tuple(p.id for p in items), tuple(p.template for p in items))


def readers(subject: Subject, outcome: Outcome, final: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Per pair, the vector that reads the logit difference off the final stream, the norm's scale frozen at `final`."""
    norm, readout = _readout(subject, outcome, final)
    return norm.pull_back(readout)


def _readout(subject: Subject, outcome: Outcome, final: Tensor) -> "tuple[FrozenNorm, Tensor]":
    norm = freeze(subject.family.final_norm_of(subject.model), final)
    return norm, _difference(outcome, subject.family.unembed_of(subject.model).weight).to(final.device)


def _written(subject: Subject, found: dict[Site, Tensor], reader: Float[Tensor, "n d_model"]) -> Iterator[tuple[str, Tensor]]:
    """Contribution of every component that writes to the residual stream."""

    def read(written: Tensor) -> Tensor:
        return (written * reader.to(written.device)).sum(-1)

    yield "embed", read(found[Site("resid_pre", 0)])
    for layer in range(subject.shape.n_layers):
        z, project = found[Site("head_z", layer)], subject.family.out_proj_of(subject.model, layer)
        # Pulling the reader back through each head spares the (n, head, d_model) tensor of head results.
        per_head = torch.einsum("nd,hde->nhe", reader.to(z.device), head_weight(subject, layer).float().to(z.device))
        for head, values in enumerate((z * per_head).sum(-1).T):
            yield f"head_result.{layer}.{head}", values
        if (bias := _bias(project)) is not None:
            yield f"attn_bias.{layer}", read(bias)
        yield f"mlp_out.{layer}", read(found[Site("mlp_out", layer)])


def _constant(subject: Subject, outcome: Outcome, norm: "FrozenNorm", readout: Tensor) -> dict[str, Tensor]:
    """Contributions that no component writes: biases of the final norm and of the unembedding."""
    parts: dict[str, Tensor] = {}
    if norm.bias is not None:
        parts["final_norm_bias"] = readout @ norm.bias
    if (bias := _bias(subject.family.unembed_of(subject.model))) is not None:
        parts["unembed_bias"] = _difference(outcome, bias)
    return parts


def _difference(outcome: Outcome, table: Tensor | nn.Module) -> Tensor:
    """A per-token table's entry for the answer minus that for the counterfactual answer."""
    assert isinstance(table, Tensor)  # noqa: S101 - families name a linear unembedding
    answer, other = (ids.to(table.device) for ids in (outcome.answer, outcome.counterfactual_answer))
    return table[answer].float() - table[other].float()


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.float() if isinstance(bias, Tensor) else None


def _numbers(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())


def _check_sum(values: Array, total: Array, dtype: torch.dtype) -> None:
    gap = np.abs(values.sum(0) - total) / np.abs(values).sum(0).clip(min=1.0)
    if gap.max() > max(1e-3, 16 * torch.finfo(dtype).eps):
        raise SubjectError(
            f"the components' contributions miss the logit difference by {gap.max():.1%} of what they write: "
            "this model's residual stream is not a plain sum of its components, or its logits are changed after the unembedding"
        )


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm with its scale held at one run's values: an affine map per token.

    Attributes:
        scale: what each token is multiplied by, shape (n, 1).
        centred: whether the mean over features is subtracted first.
    """

    scale: Float[Tensor, "n 1"]
    centred: bool
    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None

    def apply(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The norm of `x`."""
        scaled = self._centre(x) * self.scale
        weighted = scaled if self.weight is None else scaled * self.weight
        return weighted if self.bias is None else weighted + self.bias

    def pull_back(self, readout: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The vector that reads from the norm's input what `readout` reads from its output, biases aside."""
        # Subtracting the mean is a symmetric map, so it is its own transpose.
        return self._centre(readout if self.weight is None else readout * self.weight) * self.scale

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


def freeze(norm: nn.Module, hidden: Float[Tensor, "n d_model"]) -> FrozenNorm:
    """The norm as the affine map it is at `hidden`.

    Raises:
        SubjectError: neither a layer norm, an RMS norm nor the identity, or its output is not reproduced.
    """
    x = hidden.float()
    frozen = _frozen(norm, x)
    tolerance = max(1e-4, 4 * torch.finfo(hidden.dtype).eps)
    with torch.no_grad():
        actual = norm(hidden).float()
    if frozen is None or not bool((frozen.apply(x) - actual).abs().max() <= tolerance * max(1.0, float(actual.abs().max()))):
        raise SubjectError(
            f"final norm {type(norm).__name__} is not linearisable: expected nn.LayerNorm, an RMS norm with `weight` and "
            "`variance_epsilon` or `eps`, or nn.Identity"
        )
    return frozen


def _frozen(norm: nn.Module, x: Tensor) -> FrozenNorm | None:
    if isinstance(norm, nn.Identity):
        return FrozenNorm(torch.ones_like(x[:, :1]), False, None, None)
    weight, centred = getattr(norm, "weight", None), isinstance(norm, nn.LayerNorm)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is None or not (centred or isinstance(weight, Tensor)):
        return None
    deviation = x - x.mean(-1, keepdim=True) if centred else x
    scale = (deviation.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return FrozenNorm(scale, centred, weight.float() if isinstance(weight, Tensor) else None, _bias(norm))
