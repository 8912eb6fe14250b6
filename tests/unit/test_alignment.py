"""Interchange accuracy by place, against planted circuits and against one exchange at a time."""

import numpy as np
import pytest
import torch

import builders
from mediant.core.errors import TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import swap
from mediant.interventions.execute import run
from mediant.search.alignment import interchange_map
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant


def test_a_planted_bit_is_at_its_token_before_it_is_moved_and_at_the_last_one_after():
    toy = plant("single")
    turned = interchange_map(toy.subject, toy.pairs, ["resid_pre.0", "resid_post.0"], ["a", "b", "last"])
    assert turned[..., 0].tolist() == [[True, False, False], [False, False, True]]


def test_every_cell_is_what_one_exchange_does():
    lm, pairs = builders.subject(), builders.pairs()
    sites, spans = [Site("resid_post", layer) for layer in range(lm.shape.n_layers)], [Span("last"), Span.index(9)]
    turned = interchange_map(lm, pairs, sites, spans, batch_size=3)
    assert turned.shape == (len(sites), 2, len(pairs))
    for k, pair in enumerate(pairs):
        batch = encode(lm, [pair])
        for i, site in enumerate(sites):
            for j, span in enumerate(spans):
                with torch.no_grad():
                    source = run(lm, batch.source, capture=[(site, span)]).captured[site, span]
                    logits = run(lm, batch.base, [swap(site, span, source)]).last[0]
                own, other = batch.answers[0][0], batch.counterfactual_answers[0][0]
                assert turned[i, j, k] == bool(logits[other] > logits[own]), (pair.id, str(site), str(span))
    assert np.unique(turned).tolist() == [False, True]


def test_nothing_to_exchange_is_refused():
    with pytest.raises(TaskError, match="nothing to exchange"):
        interchange_map(builders.subject(), [], ["resid_post.0"], ["last"])
