"""What does a text describe? Judges that need no other model.

>>> captions = ["Fox runs with a red ball.", "Frog runs with a blue kite.", "Owl sits on a red box."]
>>> described(captions, "A frog and its kite are running")
1
>>> same_text("Panel 2: Fox runs!", "fox runs"), fact_share("Fox sits", ("fox", "runs"))
(True, 0.5)

`described` is a forced choice between captions by shared words, rare ones weighing more; it is what a multimodal judge is asked
to do where one is at hand (`mediant.measures.endpoint_judge`).
"""

import math
import re
from collections.abc import Sequence

# Two texts whose sets of words overlap this much count as one (the released code of Gandikota & Bau 2026).
SAME_WORDS = 0.85
_LABEL = re.compile(r"^\s*(?:panel\s*)?\d+\s*[.:)]\s*|^\s*panel\s+\w+\s*[.:)]\s*", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Words of a text in lower case, without a leading label such as "Panel 3:" or "2."."""
    return re.findall(r"[^\W_]+", _LABEL.sub("", text).lower())


def described(captions: Sequence[str], text: str) -> int | None:
    """Which caption a text shares most with; None where it shares no telling word with any, or with two equally.

    A word in `df` of N captions weighs log(1 + N / df), one in all of them nothing. Words of numbers and labels are ignored.
    """
    sets = [set(words(caption)) for caption in captions]
    said = set(words(text))
    frequency = {word: sum(word in one for one in sets) for one in sets for word in one}
    weight = {word: math.log(1 + len(sets) / df) for word, df in frequency.items() if df < len(sets) and not word.isdecimal()}
    scores = [sum(weight.get(word, 0.0) for word in said & one) for one in sets]
    best = max(scores)
    winners = [i for i, score in enumerate(scores) if math.isclose(score, best)]
    return winners[0] if best > 0 and len(winners) == 1 else None


def same_text(text: str, other: str) -> bool:
    """Whether two texts are one but for case, marks and labels, or share 85 % of their words."""
    one, two = words(text), words(other)
    if one == two:
        return True
    together = set(one) | set(two)
    return bool(together) and len(set(one) & set(two)) / len(together) >= SAME_WORDS


def exactly(text: str, caption: str) -> bool:
    """Whether a text is the caption, word for word, but for case, marks and a leading label."""
    return words(text) == words(caption)


def fact_share(text: str, facts: Sequence[str]) -> float:
    """Share of the facts that the text names."""
    said = set(words(text))
    return sum(fact.lower() in said for fact in facts) / len(facts) if facts else 0.0


def repetitive(text: str) -> bool:
    """Whether a text is junk: nothing said, or one word making up more than half of eight or more."""
    said = words(text)
    return not said or (len(said) >= 8 and max(said.count(word) for word in set(said)) > len(said) / 2)
