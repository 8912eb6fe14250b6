"""Twins: the same weights and numbers, and edits that stay in their own thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import generators
from builders import pairs, subject
from mediant.core.edge import AttentionEdge
from mediant.core.errors import EditError
from mediant.core.span import Span
from mediant.interventions import edit, run, zero
from mediant.interventions.attention import attending, cut
from mediant.subject.twins import Twins, twin
from mediant.tasks.encode import encode


def test_a_twin_shares_weights_and_nothing_that_hooks_or_settings_change():
    lm, other = subject(), twin(subject())
    assert [p.data_ptr() for p in other.model.parameters()] == [p.data_ptr() for p in lm.model.parameters()]
    assert not {id(m) for m in other.model.modules()} & {id(m) for m in lm.model.modules()}
    assert other.model.config is not lm.model.config
    assert other.layers[0].self_attn.config is other.model.config
    batch = encode(lm, pairs()).base
    with torch.no_grad():
        before = run(lm, batch).logits
        with edit(lm, zero("resid_post.0", Span("all"))):
            assert torch.equal(run(other, batch).logits, before)
            assert not torch.allclose(run(lm, batch).logits, before)
            with pytest.raises(EditError, match="edits that are in force"):
                twin(lm)


def test_edits_in_two_threads_at_once_give_what_they_give_one_after_the_other():
    lm, batch = subject("gpt2"), encode(subject("gpt2"), pairs()).base
    sites = [f"head_z.{layer}.{head}" for layer in range(2) for head in range(2)] * 10
    twins, used, gate = Twins(lm), set(), threading.Barrier(2)

    def at(site: str) -> torch.Tensor:
        mine = twins.here()
        if id(mine) not in used:
            used.add(id(mine))
            gate.wait(20)  # both threads have begun
        with torch.no_grad(), edit(mine, zero(site, Span("all"))):
            return run(mine, batch).logits

    with torch.no_grad():
        expected = []
        for site in sites:
            with edit(lm, zero(site, Span("all"))):
                expected.append(run(lm, batch).logits)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(at, sites))
    assert len(used) == 2
    assert id(lm) not in used
    assert twins.here() is lm
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_a_generators_twin_shares_every_part_and_cuts_of_its_own():
    flux = generators.klein()
    other = twin(flux)
    weights = [[p.data_ptr() for part in one.pipeline.components.values() if isinstance(part, torch.nn.Module)
                for p in part.parameters()] for one in (flux, other)]  # fmt: skip
    assert weights[0] == weights[1]
    assert other.model is other.pipeline.transformer is not flux.model
    assert not {id(m) for m in other.model.modules()} & {id(m) for m in flux.model.modules()}
    references = [[generators.picture(0)]]
    one, two = (each.encode(["a cat"], references=references, seeds=[1], height=16, width=32) for each in (flux, other))
    plain = flux.sample(one)
    with attending(flux, [cut(AttentionEdge(layer, None, "picture", "reference")) for layer in range(5)]):
        assert torch.equal(other.sample(two), plain)
        assert not torch.allclose(flux.sample(one), plain, atol=1e-3)


def test_threads_are_shared_out_and_given_back():
    before = torch.get_num_threads()
    twins = Twins(subject())
    twins.n = 2
    torch.set_num_threads(4)
    try:
        with twins.side_by_side():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
