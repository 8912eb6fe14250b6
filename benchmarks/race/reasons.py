"""Why a row misses its target, where it does: what a profile shows, and what was tried. Printed only where it is missed."""

REASONS: dict[str, str] = {
    "capture": """nnsight hands over the tensors the model made; we copy what is captured, because what runs later may write
into them, and look up which tokens a span names. The copies and their hooks are what the difference to the bare model is.
Tried: tokens found once for all sites of a span, one index instead of two (80 to 21 microseconds per capture), no sorting
of what is in order. References instead of copies would close the gap, at the price of that safety.""",
    "sweep": """A profile shows four fifths of our time in the model's matrix products, on batches of some dozens to
hundreds of tokens that run at about half of the matrix rate; the peers' batches of a whole layer's cells run at nearly
three quarters of it. Tried: folding neighbouring columns where a pass over the weights costs more than their extra tokens,
which halves our time (kept; larger folds gain no more), and a contiguous copy before the unembedding. Not done: letting
patches of higher layers join a batch on its way up, which would make batches larger without extra tokens.""",
    "generation": """Nearly all of the time is the model's own, for every contender. An edit of ours takes 85 microseconds
per layer and token (it looks up its tokens, writes a copy, and measures how much it changed for its report), where nnsight
and pyvene add in place and report nothing. Tried: tokens found once per step for all layers and one index instead of four,
which made an edit two to three times as fast.""",
}
