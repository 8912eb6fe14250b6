"""Every operation against its closed form, in any basis, in order and nested."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from builders import ioi_pair, prompt, prompts, rotation, subject, vector
from mediant.core import Direction, Site, Span
from mediant.core.errors import EditError
from mediant.interventions import (
    PCA,
    Activation,
    Edit,
    Rotation,
    Where,
    add,
    edit,
    mean,
    noise,
    project_out,
    record,
    replay,
    run,
    scale,
    set_to,
    steer,
    swap,
    zero,
)
from mediant.subject import Batch, Subject

pytestmark = pytest.mark.usefixtures("no_gradients")
PROMPTS = prompts()
OTHERS = [
    ioi_pair().counterfactual,
    prompt("Mary said are the ball are near two", S2="near", IO="ball"),
    prompt("keys near two John", S2="two", IO="John"),
]
ALL, S2 = Span("all"), Span("S2")
WIDTH = {
    "resid_pre.1": 32,
    "resid_mid.1": 32,
    "attn_out.1": 32,
    "mlp_out.0": 32,
    "mlp_post.2": 48,
    "head_z.1.2": 8,
    "v.0.1": 8,
    "resid_post.2": 32,
}


@pytest.fixture
def batch(lm) -> Batch:
    return lm.encode(PROMPTS)


@pytest.fixture
def others(lm) -> Batch:
    return lm.encode(OTHERS)


def values(lm: Subject, batch: Batch, site: str, *edits: Edit, span: Span = ALL) -> Activation:
    return run(lm, batch, edits, capture=[(site, span)]).captured[Site.parse(site), span]


# --- operations ----------------------------------------------------------------------------------------------


def unit(d: int) -> Tensor:
    return vector(d) / vector(d).norm()


OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "add": (lambda s, d, o: add(s, S2, vector(d), 2.5), lambda h, o: h + 2.5 * vector(h.shape[-1])),
    "scale": (lambda s, d, o: scale(s, S2, -0.75), lambda h, o: -0.75 * h),
    "set": (lambda s, d, o: set_to(s, S2, vector(d)), lambda h, o: vector(h.shape[-1]).expand_as(h)),
    "zero": (lambda s, d, o: zero(s, S2), lambda h, o: torch.zeros_like(h)),
    "mean": (lambda s, d, o: mean(s, S2, o), lambda h, o: o.values.sum(0) / 3 * torch.ones_like(h)),
    "swap": (lambda s, d, o: swap(s, S2, o), lambda h, o: o.values),
    "project out": (
        lambda s, d, o: project_out(s, S2, 7.0 * vector(d)),
        lambda h, o: h - torch.outer(h @ unit(h.shape[-1]), unit(h.shape[-1])),
    ),
    "project a direction out": (
        lambda s, d, o: project_out(s, S2, Direction.from_vector(vector(d).numpy(), Site.parse(s))),
        lambda h, o: h @ (torch.eye(h.shape[-1]) - torch.outer(unit(h.shape[-1]), unit(h.shape[-1]))),
    ),
    "steer": (
        lambda s, d, o: steer(Direction.from_vector(vector(d).numpy(), Site.parse(s)), S2, doses=-1.5),
        lambda h, o: h - 1.5 * vector(h.shape[-1]),
    ),
}


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_an_operation_writes_its_closed_form_at_its_span_and_nothing_elsewhere(lm, batch, others, operation):
    make, closed_form = OPERATIONS[operation]
    for site, width in WIDTH.items():
        before, other = values(lm, batch, site), values(lm, others, site, span=S2)
        after = values(lm, batch, site, make(site, width, other))
        rows, cols = batch.locate(S2)
        inside = torch.tensor(
            [(r, c) in set(zip(rows.tolist(), cols.tolist(), strict=True)) for r, c in zip(*_where(before), strict=True)]
        )
        assert inside.sum() == 3
        expected = closed_form(before.values[inside], other)
        assert torch.allclose(expected, after.values[inside], atol=1e-5), site
        assert torch.equal(before.values[~inside][:2], after.values[~inside][:2])  # before the first edited token
        if operation.startswith("project"):
            assert (
                float((after.values[inside] @ unit(width)).abs().max())
                < 1e-5
                < float((before.values[inside] @ unit(width)).abs().max())
            )


def _where(found: Activation) -> tuple[list[int], list[int]]:
    return found.rows.tolist(), found.cols.tolist()


def test_an_edit_at_the_last_site_leaves_every_other_token_bit_identical(lm, batch):
    before, after = values(lm, batch, "final_resid"), values(lm, batch, "final_resid", add("resid_post.2", "S2", vector(32)))
    assert int((before.values != after.values).any(-1).sum()) == 3


def test_noise_is_gaussian_of_the_given_size_and_the_same_for_a_seed(lm, batch):
    long = lm.encode(["the a When Mary John Tom Anna and went to store park " * 5] * 40)
    drawn = (
        values(lm, long, "resid_pre.1", noise("resid_pre.1", "all", 0.5, seed=1)).values - values(lm, long, "resid_pre.1").values
    ).flatten()
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 5 * 0.5 / n**0.5
    assert abs(float(drawn.std()) - 0.5) < 5 * 0.5 / (2 * n) ** 0.5
    assert abs(float((drawn**4).mean()) / 0.5**4 - 3) < 0.15
    one, again, other = (values(lm, batch, "head_z.1.2", noise("head_z.1.2", "all", 0.5, seed=s)).values for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=0.1)


def test_noise_is_the_same_in_a_replay(lm, batch):
    made = noise("resid_mid.1", "S2", 0.5, seed=3)
    assert torch.allclose(run(lm, batch, [made]).last, replay(record(lm, batch), [made]).last, atol=1e-4)


def test_noise_is_the_same_on_either_side_of_padding(lm, batch):
    made = noise("resid_mid.1", "all", 0.5, seed=3)
    left, right = values(lm, batch, "resid_mid.1", made), values(lm, lm.encode(PROMPTS, side="right"), "resid_mid.1", made)
    assert torch.allclose(left.values, right.values, atol=1e-5)


# --- features and subsets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["add", "scale", "set", "zero", "mean", "swap", "project out"])
def test_an_index_restricts_an_operation_to_some_coordinates(lm, batch, others, operation):
    make, _ = OPERATIONS[operation]
    for site, width in WIDTH.items():
        other = values(lm, others, site, span=S2)
        whole = make(site, width, other)
        part = Edit(whole.site, whole.span, whole.kind, whole.value, index=(5, 0))
        before, full, got = (values(lm, batch, site, *e, span=S2).values for e in ([], [whole], [part]))
        rest = [i for i in range(width) if i not in (0, 5)]
        assert torch.allclose(full[:, [0, 5]], got[:, [0, 5]], atol=1e-5)
        assert torch.allclose(before[:, rest], got[:, rest], atol=0 if site != "resid_mid.1" else 1e-6)


@pytest.mark.parametrize("site", list(WIDTH))
def test_unchanged_features_leave_every_bit_whatever_the_basis_loses(lm, batch, site):
    own = values(lm, batch, site)
    bases = [rotation(WIDTH[site], WIDTH[site]), rotation(WIDTH[site], 3), PCA.fit(own.values, 5), Lossy(WIDTH[site])]
    expected = run(lm, batch)
    for basis in bases:
        for where in (Where(features=basis), Where(features=basis, index=(1, 2))):
            for made in (scale(site, ALL, 1.0, where), swap(site, ALL, own, where)):
                assert torch.equal(expected.logits, run(lm, batch, [made]).logits)


class Lossy:
    """Three features that do not come back as they went in."""

    n_features = 3

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, h: Tensor) -> Tensor:
        return torch.relu(h[:, :3] - 0.2)

    def decode(self, f: Tensor) -> Tensor:
        return torch.nn.functional.pad(f * 0.7 + 0.1, (0, self.width - 3))


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_mid.1", "mlp_post.2", "head_z.1.2"])
def test_a_swap_in_a_rotated_basis_changes_the_component_in_the_subspace_and_no_other(lm, batch, others, site):
    width = WIDTH[site]
    source, before = values(lm, others, site, span=S2), values(lm, batch, site, span=S2).values
    plain = values(lm, batch, site, swap(site, S2, source), span=S2).values
    full = rotation(width, width)
    assert torch.allclose(plain, values(lm, batch, site, swap(site, S2, source, Where(features=full)), span=S2).values, atol=1e-5)
    for where, inside in (
        (Where(features=rotation(width, 3)), full.basis[:, :3]),
        (Where(features=full, index=(4, 0)), full.basis[:, [0, 4]]),
    ):
        got = values(lm, batch, site, swap(site, S2, source, where), span=S2).values
        outside = torch.eye(width) - inside @ inside.T
        assert torch.allclose(source.values @ inside, got @ inside, atol=1e-5)
        assert torch.allclose(before @ outside, got @ outside, atol=1e-5)
        assert not torch.allclose(before, got, atol=1e-2)


def test_operations_in_a_basis_act_on_the_features(lm, batch):
    basis = rotation(32, 4)
    before = values(lm, batch, "resid_pre.1", span=S2).values
    f = before @ basis.basis
    step = torch.tensor([1.0, -2.0, 3.0, 0.5])
    for made, expected in (
        (zero("resid_pre.1", S2, Where(features=basis)), torch.zeros_like(f)),
        (zero("resid_pre.1", S2, Where(features=basis, index=(2,))), f * torch.tensor([1.0, 1, 0, 1])),
        (scale("resid_pre.1", S2, 3.0, Where(features=basis, index=(0, 3))), f * torch.tensor([3.0, 1, 1, 3])),
        (add("resid_pre.1", S2, step, 2.0, Where(features=basis)), f + 2 * step),
        (set_to("resid_pre.1", S2, step, Where(features=basis)), step.expand_as(f)),
    ):
        got = values(lm, batch, "resid_pre.1", made, span=S2).values
        assert torch.allclose(before + (expected - f) @ basis.basis.T, got, atol=1e-5), made.label


def test_principal_axes_are_the_eigenvectors_of_the_covariance(lm, batch):
    h = values(lm, batch, "resid_pre.1").values
    pca = PCA.fit(h, 4)
    expected, axes = np.linalg.eigh(np.cov(h.double().numpy().T))
    assert np.allclose(expected[::-1][:4], pca.variance.numpy(), rtol=1e-4)
    assert np.allclose(1, np.abs((axes[:, ::-1][:, :4] * pca.axes.numpy()).sum(0)), atol=1e-4)
    assert torch.allclose(pca.encode(h).mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(h, PCA.fit(h, min(h.shape)).decode(PCA.fit(h, min(h.shape)).encode(h)), atol=1e-3)
    for k in (0, 27, 33):
        with pytest.raises(EditError, match=f"{k} principal axes"):
            PCA.fit(h, k)
    with pytest.raises(EditError, match="orthonormal"):
        Rotation(torch.eye(4)[:, :2] * 1.001)


# --- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_mid.1", "attn_out.1", "mlp_out.0", "head_z.1.2", "q.2.3", "final_resid"])
def test_edits_act_in_their_order_and_an_outer_context_before_an_inner(lm, batch, site):
    d = 8 if site.startswith(("head", "q")) else 32
    h, plus, twice = values(lm, batch, site).values, add(site, ALL, vector(d)), scale(site, ALL, 2.0)
    assert torch.allclose(2 * (h + vector(d)), values(lm, batch, site, plus, twice).values, atol=1e-5)
    assert torch.allclose(2 * h + vector(d), values(lm, batch, site, twice, plus).values, atol=1e-5)
    with edit(lm, plus):
        assert torch.allclose(2 * (h + vector(d)), values(lm, batch, site, twice).values, atol=1e-5)
        with edit(lm, twice):
            assert torch.allclose(2 * (h + vector(d)) + vector(d), values(lm, batch, site, plus).values, atol=1e-5)
        assert torch.allclose(h + vector(d), values(lm, batch, site).values, atol=1e-5)
    assert torch.equal(h, values(lm, batch, site).values)


def test_two_names_of_one_tensor_are_edited_in_order_and_heads_apart(lm, batch):
    h = values(lm, batch, "resid_pre.1").values
    both = values(lm, batch, "resid_pre.1", add("resid_post.0", ALL, vector(32)), scale("resid_pre.1", ALL, 2.0)).values
    assert torch.allclose(2 * (h + vector(32)), both, atol=1e-5)
    z = values(lm, batch, "head_z.1").values
    got = values(
        lm, batch, "head_z.1", zero("head_z.1.0", ALL), add("head_z.1", ALL, vector(8)), scale("head_z.1.3", ALL, 2.0)
    ).values
    expected = torch.stack([torch.zeros_like(z[:, 0]), z[:, 1], z[:, 2], z[:, 3]], 1) + vector(8)
    assert torch.allclose(expected * torch.tensor([1.0, 1, 1, 2])[:, None], got, atol=1e-5)


AT = ["resid_pre.1", "resid_mid.1", "attn_out.1", "head_z.1.2", "head_result.1.2", "q.1.0", "resid_post.2"]


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize(
    "site", ["resid_pre.1", "resid_mid.1", "attn_out.1", "head_z.1.2", "head_result.1.2", "q.1.0", "resid_post.2"]
)
def test_gradients_flow_through_an_edit_to_its_value(batch, site, start):
    lm, width = subject("gpt2", dtype=torch.float64), 8 if site.startswith(("head_z", "q")) else 32
    span = "last" if site == "resid_post.2" else "S2"
    at, step = start * vector(width).double(), 1e-5 * vector(width, 1).double()

    def measured(v: Tensor) -> Tensor:
        return run(lm, batch, [add(site, span, v), scale("mlp_out.2", "all", 0.5)]).last[:, 3].sum()

    with torch.enable_grad():
        v = at.clone().requires_grad_()
        measured(v).backward()
    slope = float(measured(at + step) - measured(at - step)) / 2
    assert abs(slope) > 1e-8
    assert slope == pytest.approx(float(v.grad @ step), rel=1e-5)
