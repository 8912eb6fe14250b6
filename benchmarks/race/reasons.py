"""Why a row misses its target, where it does: what a profile shows, and what was tried. Printed only where it is missed."""

REASONS: dict[str, str] = {
    "capture": """nnsight hands over the tensors the model made; we copy what is captured, because what runs later may write
into them, and look up which tokens a span names. The copies and their hooks are what the difference to the bare model is.
Tried: tokens found once for all sites of a span, one index instead of two (80 to 21 microseconds per capture), no sorting
of what is in order. References instead of copies would close the gap, at the price of that safety.""",
    "sweep": """A sixth of our time is preparation, the untouched run and the source's, which is there before the first
patch. Most of the rest is the model's matrix products, on batches of one to several hundred tokens that run below the rate of
the large square products behind the floor; the peers compute two and a half times as many tokens, in larger batches that run
nearer to it. Tried: folding neighbouring columns where a pass over the weights costs more than their extra tokens, which halves
our time over few pairs; letting patches of later layers join a fold on its way up, which halves a sweep over all layers and takes
a tenth off this one of three; a contiguous copy before the unembedding; folds of 512 to 1,536 tokens, which are equally fast.
A forward per cell, which is what TransformerLens's own tool and a plain loop do, takes longer still (timed once, above).""",
    "generation": """Nearly all of the time is the model's own, for every contender. An edit of ours takes 85 microseconds
per layer and token (it looks up its tokens, writes a copy, and measures how much it changed for its report), where nnsight
and pyvene add in place and report nothing. Tried: tokens found once per step for all layers and one index instead of four,
which made an edit two to three times as fast.""",
}
