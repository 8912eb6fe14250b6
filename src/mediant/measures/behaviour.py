"""Is there a behaviour to look for? A subject that does a task no better than chance has no part that carries it."""

import numpy as np

from mediant.core.errors import TaskNotDone
from mediant.measures.intervals import Array, coin_flip_p


def refuse_unless_done(preferred: Array, total: Array, *, task: str, subject: str) -> None:
    """Raise where the answer is preferred no more often than by a coin, or the counterfactual hardly moves it.

    Args:
        preferred: per pair, whether the answer is likelier than the counterfactual one.
        total: per pair, the metric on the counterfactual prompt minus on the clean one.

    Raises:
        TaskNotDone: with what to check.
    """
    share, n = float(np.mean(preferred)), len(preferred)
    # Fewer than five pairs cannot tell a model from a coin; there all of them have to be right.
    if coin_flip_p(int(np.sum(preferred)), n) > 0.05 and share < 1:
        raise TaskNotDone(
            f"{subject} prefers the answer in {share:.0%} of {n} pairs of {task!r}, no better than chance (a fair coin "
            f"does as well with p = {coin_flip_p(int(np.sum(preferred)), n):.2f}), so "
            "there is no behaviour to locate. Check the answers' leading spaces and the prompts' wording, or take a stronger "
            "model."
        )
    if abs(total.mean()) <= 0.2 * total.std():
        raise TaskNotDone(
            f"the counterfactual prompts hardly change {subject}'s answer on {task!r}: mean total effect "
            f"{total.mean():+.3f}, spread {total.std():.3f}. Choose counterfactuals whose answer differs."
        )
