"""Data drawn by several processes, the same whoever draws it.

for some in drawn_in_shards(partial(draw, "seed"), 10_000, workers=16):     # draw(seed, shard, n) -> list
    ...
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
# Items that are drawn from one source of chance.
SHARD = 250


def drawn_in_shards(draw: Callable[[int, int], list[Item]], n: int, *, workers: int = 1) -> Iterator[list[Item]]:
    """`n` items, a shard at a time and in order; with one worker they are drawn here, and no sooner than they are asked for.

    Args:
        draw: items of a shard by its number and size; with several workers a function that can be pickled.
    """
    sizes = [min(SHARD, n - begin) for begin in range(0, n, SHARD)]
    if workers == 1:
        yield from map(draw, range(len(sizes)), sizes)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(draw, i, size) for i, size in enumerate(sizes)]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
