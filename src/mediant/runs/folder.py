"""A run folder: manifest, append-only items, result, page. A killed run resumes with nothing lost or done twice.

    folder = RunFolder.open(Path("runs/demo"), manifest, resume=False)
    if "heads/0" not in folder.done:
        folder.append("heads/0", {"effects": [...]})

    runs/demo/
      manifest.json   what was asked for: study, preset, config, model and its hash, versions
      items.jsonl     one line per finished work item, each with a unique key
      result.json     measures, limits, provenance (see `mediant.core.result`)
      index.html      the page

An item is one `write` of one line; a line cut short by a kill is dropped when the folder is opened again.
"""

import errno
import fcntl
import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mediant.core.errors import RunError, complaints

Json = dict[str, Any]
WRITTEN = ("manifest.json", "result.json", "index.html")


class Manifest(BaseModel):
    """What a run was asked to do; two runs with equal manifests give equal results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    preset: str
    config: dict[str, Any]
    changed: dict[str, Any] = {}
    model_fingerprint: str = ""
    versions: dict[str, str] = {}


class RunFolder:
    """An open run folder."""

    def __init__(self, path: Path, manifest: Manifest, done: dict[str, Json], lock: int) -> None:
        self.path, self.manifest, self.done = path, manifest, done
        self._release = weakref.finalize(self, os.close, lock)

    def close(self) -> None:
        """Let others open the folder."""
        self._release()

    @classmethod
    def open(cls, path: Path, manifest: Manifest, *, resume: bool = False) -> "RunFolder":
        """Create a run folder, or take up an unfinished or finished one.

        Raises:
            RunError: the folder holds a run and `resume` is off, or that run was asked for something else,
                or the folder cannot be written.
        """
        if not resume and (path / "manifest.json").exists():
            raise _taken(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, manifest, {}, _lock(path))
        try:
            folder._take_up(resume)
        except RunError:
            folder.close()
            raise
        return folder

    def _take_up(self, resume: bool) -> None:
        existing = self.path / "manifest.json"
        if existing.exists():
            if not resume:
                raise _taken(self.path)
            _same(read_manifest(self.path), self.manifest, self.path)
            self._sweep()
            self.done = _read_items(self.path / "items.jsonl")
            return
        # A run killed while it began leaves at most a hidden half of its manifest.
        if any(not file.name.startswith(".manifest.json.") for file in self.path.iterdir()):
            raise RunError(f"{self.path} is not empty and holds no run; choose another --out")
        with disk_errors(self.path):
            write_atomically(existing, self.manifest.model_dump_json(indent=1) + "\n")
        self._sweep()

    def _sweep(self) -> None:
        """Remove the hidden halves of files that a killed run was writing."""
        for left in (file for name in WRITTEN for file in self.path.glob(f".{name}.*")):
            left.unlink()

    def append(self, key: str, record: Json) -> Json:
        """Store a finished item.

        Returns:
            The record as it reads back from disk, so that an undisturbed and a resumed run compute with the same numbers.

        Raises:
            RunError: the key was stored before, or the disk is full.
        """
        if key in self.done:
            raise RunError(f"item {key!r} was stored before")
        try:
            line = json.dumps({"key": key, **record}, separators=(",", ":"), allow_nan=False) + "\n"
        except ValueError as error:
            raise RunError(
                f"item {key!r} holds numbers that are not finite: the model or the metric gave none; try --dtype float32"
            ) from error
        with disk_errors(self.path):
            handle = os.open(self.path / "items.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _write_whole(handle, line.encode())
            finally:
                os.close(handle)
        self.done[key] = json.loads(line)
        return self.done[key]

    def write(self, name: str, text: str) -> Path:
        """Write a finished file in one step: it is there whole, or not at all."""
        with disk_errors(self.path):
            return write_atomically(self.path / name, text)


def _taken(path: Path) -> RunError:
    return RunError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")


def _lock(path: Path) -> int:
    """Hold the folder while this process fills it; the system lets go when the process ends, however it ends."""
    with disk_errors(path):
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RunError(f"another process is filling {path}; wait for it, or choose another --out") from error
    return handle


def write_atomically(path: Path, text: str) -> Path:
    """Write text beside `path` and move it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failing disk into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk that holds {path} is full; free some space and go on with --resume (finished items are kept)"
            ) from error
        raise RunError(f"cannot write to {path}: {error.strerror or error}; choose another --out") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        RunError: the folder holds no readable run.
    """
    try:
        return Manifest.model_validate_json((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} holds no run of this version: {complaints(error)}") from error


def _write_whole(handle: int, data: bytes) -> None:
    """One append; on failure a partly written line is taken back."""
    start = os.lseek(handle, 0, os.SEEK_END)
    try:
        written = os.write(handle, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(handle, start)
        raise


def _read_items(path: Path) -> dict[str, Json]:
    """Finished items; a cut last line is removed from the file.

    Raises:
        RunError: a line in the middle is broken or a key occurs twice.
    """
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with disk_errors(path), path.open("r+b") as file:
            file.truncate(whole)
    done: dict[str, Json] = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            item = json.loads(line)
            key = item["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} line {number} is broken: {error}; start afresh with another --out") from error
        if key in done:
            raise RunError(f"{path} line {number}: item {key!r} occurs twice")
        done[key] = item
    return done


def _same(before: Manifest, now: Manifest, path: Path) -> None:
    one, two = _flat(before.model_dump()), _flat(now.model_dump())
    different = sorted(name for name in {**one, **two} if one.get(name) != two.get(name))
    if different:
        shown = "; ".join(f"{name}: {one.get(name)!r} then, {two.get(name)!r} now" for name in different[:5])
        raise RunError(f"{path} was started with other settings, so it cannot be resumed with these ({shown})")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
