"""Which panel? Questions about a strip of the drawn world that differ in the panel they name.

>>> task = generate(1)
>>> pair = task.pairs[0]
>>> pair.clean.text, pair.counterfactual.text
('What happens in the second panel?', 'What happens in the fifth panel?')
>>> pair.answer != pair.counterfactual_answer
True

For subjects with eyes that answer with a caption, of which the first word, the character, tells the panels apart: no two panels
of a strip share one. `variables` hold the panel asked about and what is seen there.
"""

from collections.abc import Sequence

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt, Task
from mediant.core.span import RESERVED
from mediant.tasks.choosing import SingleToken, Split, numbered
from mediant.tasks.pictures import comics, scatter

UNRELATED = "Name all things, from small to large."
QUESTION = "What happens in the {panel} panel?"
# Two panels that are neither first, last nor next to each other.
PANELS = {"second": 1, "fifth": 4}
SPANS = ("panel",)


def generate(n: int, *, seed: int = 0, single_token: SingleToken | None = None, split: Split = "main") -> Task:
    """`n` pairs, each on a strip of its own, half of them about either panel.

    Args:
        single_token: leaves out strips whose two characters are not one token each.
        split: "heldout" has combinations that training never drew together.

    Raises:
        TaskError: most characters are several tokens.
    """
    pairs: list[Pair] = []
    strips = comics.generate(n + n // 4, seed=seed, split=split)
    for strip in strips:
        names = {panel: strip.captions[k].split()[0] for panel, k in PANELS.items()}
        if single_token is not None and not all(single_token(name) for name in names.values()):
            continue
        clean, other = PANELS if len(pairs) % 2 == 0 else tuple(PANELS)[::-1]
        one, two = (Prompt(QUESTION.format(panel=panel), image=strip.pixels).locate(panel=panel) for panel in (clean, other))
        variables = {"asked": clean, "character": names[clean], "other": names[other]}
        pairs.append(Pair(numbered("panels", split, len(pairs)), one, two, names[clean], names[other], "panel", variables))
        if len(pairs) == n:
            return Task("panels", f"which panel of a comic strip is asked about ({split})", tuple(pairs), SPANS)
    raise TaskError(f"only {len(pairs)} of {len(strips)} strips have characters of one token each; {n} are asked for")


def unrelated(n: int, *, seed: int = 0, spans: Sequence[str] = ()) -> list[Pair]:
    """Pairs of pictures of things on scenery with one question, to see what an exchange disturbs elsewhere.

    Args:
        spans: names that shall stand for the word "things".
    """
    pictures = scatter.generate(2 * n, seed=seed)
    named = {name: "things" for name in spans if name not in RESERVED}
    found = []
    for i, (one, two) in enumerate(zip(pictures[::2], pictures[1::2], strict=True)):
        prompts = [Prompt(UNRELATED, image=picture.pixels).locate(**named) for picture in (one, two)]
        # What is said is not looked at, only how far it moves; the two answers have to differ.
        found.append(Pair(f"things-{i:04d}", prompts[0], prompts[1], "A", "B"))
    return found
