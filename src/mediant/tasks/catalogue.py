"""The tasks that come with the package, by name; their generators are imported when asked for.

>>> generator("agreement")(2, seed=1).pairs[1].id
'agreement-0001'
"""

from importlib import import_module
from typing import Protocol, cast, runtime_checkable

from mediant.core.errors import unknown
from mediant.core.pair import Task
from mediant.tasks.choosing import SingleToken, Split

TASKS: dict[str, str] = {
    "ioi": "mediant.tasks.ioi",
    "pronouns": "mediant.tasks.pronouns",
    "agreement": "mediant.tasks.agreement",
    "arithmetic": "mediant.tasks.arithmetic",
    "colours": "mediant.tasks.colours",
    "greater-than": "mediant.tasks.greater_than",
    "docstring": "mediant.tasks.docstring",
    "induction": "mediant.tasks.induction",
    "panels": "mediant.tasks.panels",
}
"""Name -> module with `generate`."""
DESCRIPTIONS: dict[str, str] = {
    "ioi": "indirect object identification: who receives the object",
    "pronouns": "which pronoun follows a profession (gender stereotypes)",
    "agreement": "number of the verb across a distracting noun",
    "arithmetic": "single-digit sums and differences",
    "colours": "multiple choice: which letter stands before the right colour",
    "greater-than": "years after a start: all later numbers before all earlier ones",
    "docstring": "which argument the next line of a docstring names",
    "induction": "a word comes again, and so does the word after it",
    "panels": "which panel of a comic strip is asked about (for subjects with eyes)",
}


@runtime_checkable
class Generator(Protocol):
    """What every task's `generate` accepts; each has further keywords of its own."""

    def __call__(self, n: int, *, seed: int = 0, single_token: SingleToken | None = None, split: Split = "main") -> Task:
        """`n` pairs made from this seed."""
        ...


def generator(name: str) -> Generator:
    """The `generate` function of the task called `name`.

    Raises:
        UnknownName: no such task.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return cast(Generator, import_module(TASKS[name]).generate)
