"""What a user is told when something is wrong: expected, got, how to mend it, nearest valid names.

Every error this package raises on purpose is a `MediantError`; the command line prints its message
and exits with 2, so no bad input ends in a traceback.

>>> raise_unknown = unknown("site", "resid_pst", ["resid_pre", "resid_post"])
>>> print(raise_unknown)
unknown site 'resid_pst'; did you mean 'resid_post' or 'resid_pre'?
"""

import difflib
from collections.abc import Iterable
from typing import Any


class MediantError(Exception):
    """Base of all deliberate errors; `str(error)` is the whole message for the user."""


class UnknownName(MediantError):
    """A name (model, study, preset, site, span, metric, option) that does not exist."""


class OutOfRange(MediantError):
    """A layer, head, position or feature index that the subject does not have."""


class SpanError(MediantError):
    """A span that cannot be resolved to tokens of this prompt."""


class TaskError(MediantError):
    """A task file or pair that cannot be used; the message names the line or the pair."""


class TaskNotDone(MediantError):
    """The subject cannot do the task, so there is nothing whose parts could be found."""


class SubjectError(MediantError):
    """A model that cannot be loaded, or a part of it that its family cannot address."""


class UnsafeWeights(SubjectError):
    """Pickled weights: loading them would run arbitrary code, so they are refused."""


class ImageError(MediantError):
    """An image that cannot be read or is too large to be looked at."""


class RegionError(MediantError):
    """A region of an image that no image token stands for."""


class EditError(MediantError):
    """An edit whose value does not fit the place it is written to."""


class EditNeverFired(EditError):
    """An edit with a non-empty target that touched nothing in a finished run."""


class RunError(MediantError):
    """A run folder that cannot be written, resumed or read."""


class EndpointError(MediantError):
    """A model behind a server did not answer, or not in the agreed form."""


def nearest(name: str, choices: Iterable[str], *, n: int = 3) -> list[str]:
    """The `n` valid names closest to `name`, best first."""
    return difflib.get_close_matches(name, list(choices), n=n, cutoff=0.4)


def unknown(what: str, name: str, choices: Iterable[str], *, note: str = "") -> UnknownName:
    """An `UnknownName` that lists the nearest valid names, or all of them when none is near."""
    options = list(choices)
    close = nearest(name, options)
    if close:
        hint = "did you mean " + " or ".join(repr(c) for c in close) + "?"
    elif options:
        hint = "valid names: " + ", ".join(sorted(options))
    else:
        hint = f"there is no {what} to choose from"
    stop = "" if hint.endswith("?") or not note or note.startswith(("(", "in ")) else "."
    return UnknownName(f"unknown {what} {name!r}; {hint}" + (f"{stop} {note}" if note else ""))


def complaints(error: Exception) -> str:
    """What a file's content did wrong: field by field where pydantic found it, the first line of any other error."""
    problems: Any = getattr(error, "errors", None)
    if not callable(problems):
        return next(iter(str(error).splitlines()), type(error).__name__)
    return "; ".join(_complaint(".".join(map(str, one["loc"])), one["type"], one["msg"], one["input"]) for one in problems()[:5])


def _complaint(field: str, kind: str, message: str, got: object) -> str:
    if kind == "missing":
        return f"field {field!r} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"field {field!r} is not known"
    if kind == "json_invalid":
        return message
    shown = repr(got)
    return f"field {field!r}: {message[:1].lower()}{message[1:]}, got {shown if len(shown) < 80 else shown[:77] + '...'}"
