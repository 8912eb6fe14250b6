"""Engines map work items to finished records. The local one does them in order, here, with a progress bar.

An item is a key and a function; a key that the folder already holds is not computed again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mediant.runs.folder import Json, RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class WorkItem:
    """One piece of work: `compute` gives a JSON-able record and depends on nothing but its inputs."""

    key: str
    compute: Callable[[], Json]


class LocalEngine:
    """Do items one after another in this process."""

    def __init__(self, *, show_progress: bool = True) -> None:
        self.show_progress = show_progress

    def map(self, folder: RunFolder, items: Sequence[WorkItem], *, title: str) -> list[Json]:
        """Records of all items, in their order; finished ones come from the folder."""
        return [folder.done.get(item.key) or folder.append(item.key, item.compute()) for item in self.watched(items, title)]

    def watched(self, items: Sequence[T], title: str) -> Iterable[T]:
        """Go through `items` with a progress bar on standard error."""
        if not self.show_progress:
            return items
        from rich.console import Console
        from rich.progress import track

        tracked: Iterable[Any] = track(items, description=f"{title:<28}", console=Console(stderr=True), transient=False)
        return tracked
