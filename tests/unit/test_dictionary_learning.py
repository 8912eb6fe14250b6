"""Learned dictionaries: planted directions come back, held-out activations are rebuilt, and an edit can use them."""

import pytest
import torch

from mediant.core.errors import OutOfRange
from mediant.search.dictionary_learning import learn_dictionary


def sparse(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of which each is two of twelve directions, and the directions."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 12, generator=random))[0].mT
    amounts = torch.rand(n, 12, generator=random) + 0.5
    chosen = torch.stack([torch.randperm(12, generator=random)[:2] for _ in range(n)])
    mask = torch.zeros(n, 12).scatter(1, chosen, 1.0)
    return 3 * (amounts * mask) @ directions + 2.0, directions


def test_planted_directions_come_back():
    values, directions = sparse(3000)
    learned = learn_dictionary(values, n_features=24, active=2, steps=600, lr=1e-2)
    assert learned.explained > 0.95
    assert learned.n == 2700
    rows = learned.dictionary.decoder / learned.dictionary.decoder.norm(dim=-1, keepdim=True)
    best = (directions @ rows.mT).max(-1).values
    assert float(best.median()) > 0.98
    encoded = learned.dictionary.encode(values)
    assert int((encoded > 0).sum(-1).max()) <= 2
    fresh, _ = sparse(200, seed=0)
    rebuilt = learned.dictionary.decode(learned.dictionary.encode(fresh))
    assert float((rebuilt - fresh).square().sum() / (fresh - fresh.mean(0)).square().sum()) < 0.06


def test_scale_changes_nothing_and_the_seed_decides():
    values, _ = sparse(400)
    one, same = (learn_dictionary(values, n_features=16, active=2, steps=30, seed=3) for _ in range(2))
    assert torch.equal(one.dictionary.decoder, same.dictionary.decoder)
    large = learn_dictionary(1000 * values, n_features=16, active=2, steps=30, seed=3)
    assert large.explained == pytest.approx(one.explained, abs=1e-3)
    torch.testing.assert_close(large.dictionary.encode(1000 * values) / 1000, one.dictionary.encode(values), atol=1e-3, rtol=1e-2)
    assert not torch.equal(
        learn_dictionary(values, n_features=16, active=2, steps=30, seed=4).dictionary.decoder, one.dictionary.decoder
    )


def test_features_that_are_never_active_are_counted():
    values, _ = sparse(400)
    learned = learn_dictionary(values, n_features=200, active=1, steps=20)
    active = (learned.dictionary.encode(values) > 0).any(0)
    assert 0.1 < learned.dead < 0.9
    assert learned.dead == pytest.approx(1 - float(active.float().mean()))


@pytest.mark.parametrize(("changed", "message"), [({"active": 9}, "1 to 8 features"), ({"steps": 0}, "steps are at least 1")])
def test_what_makes_no_sense_is_refused(changed: dict[str, int], message: str):
    with pytest.raises(OutOfRange, match=message):
        learn_dictionary(torch.randn(40, 4), **{"n_features": 8, "active": 2, "steps": 5, **changed})
    with pytest.raises(OutOfRange, match="20 activations"):
        learn_dictionary(torch.randn(19, 4), n_features=8, active=2, steps=5)
    assert learn_dictionary(torch.randn(20, 4), n_features=8, active=8, steps=1).dictionary.n_features == 8
