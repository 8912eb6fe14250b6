"""An attention call: which columns of the batch its queries and keys are, also where a sliding window has dropped the oldest."""

import pytest
import torch

from builders import prompts, subject
from mediant.core import Span
from mediant.interventions.attention_call import Call
from mediant.subject import Batch


def call(batch: Batch, offset: int, n_queries: int, n_keys: int) -> Call:
    query, key = torch.zeros(batch.n_rows, 4, n_queries, 8), torch.zeros(batch.n_rows, 2, n_keys, 8)
    return Call(query, key, key, None, None, None, batch, offset, 0)


@pytest.fixture
def batch() -> Batch:
    return subject().encode(prompts("Anna"))


@pytest.mark.parametrize(
    ("offset", "n_queries", "n_keys", "first"),
    [(0, 9, 9, 0), (9, 1, 10, 0), (5, 4, 9, 0), (9, 1, 4, 6), (9, 3, 8, 4), (7, 2, 8, 1), (0, 9, 12, 0)],
)
def test_the_last_key_is_the_last_query(batch, offset, n_queries, n_keys, first):
    # A static cache may have room for keys that are not there yet: then it starts at the first.
    assert call(batch, offset, n_queries, n_keys).key_offset == first


def test_a_span_covers_the_same_columns_among_queries_and_among_the_keys_that_are_left(batch):
    n = batch.n_cols
    late = call(batch, n - 2, 2, 5)
    for span in ("S2", "last", "all", "prompt", Span.index(-3)):
        rows, cols = batch.locate(Span.of(span))
        at = set(zip(rows.tolist(), cols.tolist(), strict=True))
        for covered, first, width in ((late.span_rows(Span.of(span)), n - 2, 2), (late.keys(Span.of(span)), n - 5, 5)):
            truth = [[(row, first + i) in at for i in range(width)] for row in range(batch.n_rows)]
            assert covered.tolist() == truth, span


def test_generated_columns_follow_the_prompts(batch):
    n = batch.n_cols
    step = call(batch, n + 1, 1, n + 2)
    assert step.span_rows(Span("generated")).all()
    assert step.keys(Span("generated")).tolist() == [[False] * n + [True] * 2] * batch.n_rows
    assert step.keys(Span("all"))[:, n:].all()
    assert not step.span_rows(Span("prompt")).any()


def test_query_heads_share_the_keys_of_their_group(batch):
    assert call(batch, 0, 3, 3).group == 2
    assert call(batch, 0, 3, 3).heads(None) == [0, 1, 2, 3]
    assert call(batch, 0, 3, 3).heads(2) == [2]
