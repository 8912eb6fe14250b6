"""Why a row misses its target, where it does: what a profile shows, and what was tried. Printed only where it is missed."""

REASONS: dict[str, str] = {
    "capture": """nnsight hands over the tensors the model made; we copy what is captured, because what runs later may write
into them, and look up which tokens a span names. The copies and their hooks are what the difference to the bare model is.
Tried: tokens found once for all sites of a span, one index instead of two (80 to 21 microseconds per capture), no sorting of
what is in order. References instead of copies would close the gap, at the price of that safety.""",
    "sweep": """A part of our time is preparation, the untouched run and the source's, which is there before the first patch.
Most of the rest is the model's matrix products, on batches of one to several hundred tokens that run below the rate of the
large square products behind the floor; the peers compute more than twice as many tokens, in larger batches that run nearer to
it. Tried: folding neighbouring columns where a pass over the weights costs more than their extra tokens, which halves our time
over few pairs; letting patches of later layers join a fold on its way up, which halves a sweep over all layers and takes a
tenth off this one of three; a contiguous copy before the unembedding; folds of 512 to 1,536 tokens, which are equally fast.
Not tried: laying all columns' windows end to end in one row under a block mask, which would waste no tokens.""",
    "generation": """Nearly all of the time is the model's own, for every contender. What our edits cost is the difference to
the bare model in the table: per layer and token, a hook, a sum, and keeping what was there for the report, where nnsight and
pyvene add in place and report nothing. Tried: tokens found once per step for all layers (an edit two to three times as fast),
no copying out and in where all tokens are edited and the norms of many firings taken together (a third off what was left).""",
}
