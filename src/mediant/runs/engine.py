"""Engines map work items to finished records. The local one does them here, in order or a few side by side, with a progress bar.

An item is a key and a function; a key that the folder already holds is not computed again.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mediant.core.errors import RunError
from mediant.runs.folder import Json, RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class WorkItem:
    """One piece of work: `compute` gives a JSON-able record and depends on nothing but its inputs."""

    key: str
    compute: Callable[[], Json]


class LocalEngine:
    """Do items in this process; records are stored in the items' order whoever finishes first."""

    def __init__(self, *, show_progress: bool = True, part: str = "") -> None:
        """`part` stands before every key, so that the same items can be done for several parts of a study."""
        self.show_progress, self.part = show_progress, part
        self._stopped = threading.Event()
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def map(self, folder: RunFolder, items: Sequence[WorkItem], *, title: str, workers: int = 1) -> list[Json]:
        """Records of all items, in their order; finished ones come from the folder.

        Args:
            workers: threads that compute; with more than one, items must not share what they change.
        """
        items = [WorkItem(f"{self.part}{item.key}", item.compute) for item in items]
        if workers == 1:
            return [folder.done.get(item.key) or folder.append(item.key, item.compute()) for item in self.watched(items, title)]
        # The same threads for every map: what an item left with its thread, such as a twin of the subject, serves the next one.
        if workers not in self._pools:
            self._pools[workers] = ThreadPoolExecutor(workers)
        pool = self._pools[workers]
        begun = {item.key: pool.submit(item.compute) for item in items if item.key not in folder.done}
        try:
            return [
                folder.done.get(item.key) or folder.append(item.key, begun[item.key].result())
                for item in self.watched(items, title)
            ]
        except BaseException:
            # What is being computed is waited for, so that is told to end too.
            self._stopped.set()
            self._pools.pop(workers).shutdown(wait=True, cancel_futures=True)
            raise

    def pause(self) -> None:
        """For long items to call now and then: ends them when another item failed or the user interrupted.

        Raises:
            RunError: the run is over.
        """
        if self._stopped.is_set():
            raise RunError("the run was stopped")

    def watched(self, items: Sequence[T], title: str) -> Iterable[T]:
        """Go through `items` with a progress bar on standard error."""
        if not self.show_progress:
            return items
        from rich.console import Console
        from rich.progress import track

        tracked: Iterable[Any] = track(items, description=f"{title:<28}", console=Console(stderr=True), transient=False)
        return tracked
