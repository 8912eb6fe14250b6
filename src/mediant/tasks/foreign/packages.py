"""Files out of a package of npm or Debian, which is never installed and none of whose code runs.

package = Package("npm", "comicgen", "1.9.9", licence="CC0-1.0", megabytes=7)
with downloaded(package, work) as file:
    for path, content in members(package, file): ...
"""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mediant.core.errors import TaskError

Members = Iterator[tuple[PurePosixPath, bytes]]
_TIMEOUT = 900  # seconds


@dataclass(frozen=True)
class Package:
    """Where pictures come from.

    Attributes:
        version: asked for by name where the registry keeps old versions; None takes what the system's sources have.
        licence: SPDX identifier of the pictures' licence.
        megabytes: size of the download.
    """

    registry: Literal["npm", "debian"]
    name: str
    version: str | None
    licence: str
    megabytes: int

    @property
    def command(self) -> list[str]:
        """The registry's own client, downloading into the working folder."""
        if self.registry == "npm":
            return ["npm", "pack", f"{self.name}@{self.version}", "--ignore-scripts", "--silent"]
        return ["apt-get", "download", self.name]


def download(package: Package, folder: Path) -> Path:
    """Fetch the package's file into an empty folder.

    Raises:
        TaskError: no client, or it failed; what it said is in the message.
    """
    client = package.command[0]
    how = f"or give the file itself with --source ({' '.join(package.command)} on a machine that has it)"
    if shutil.which(client) is None:
        raise TaskError(f"{package.name} comes from {package.registry}, whose client {client} is not here: install it, {how}")
    try:
        subprocess.run(package.command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT)  # noqa: S603
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or error.stdout or "").split())[-300:]
        raise TaskError(f"{' '.join(package.command)} failed: {said}; try again, {how}") from error
    except subprocess.TimeoutExpired as error:
        raise TaskError(f"{' '.join(package.command)} took longer than {_TIMEOUT} seconds; try again, {how}") from error
    found = [path for path in folder.iterdir() if path.suffix in (".tgz", ".deb")]
    if len(found) != 1:
        raise TaskError(f"{' '.join(package.command)} left {len(found)} packages instead of one; {how}")
    return found[0]


def members(package: Package, file: Path) -> Members:
    """Paths and contents of the plain files in a package; links and devices are passed over.

    Raises:
        TaskError: no such file, or not a package of this kind.
    """
    try:
        if package.registry == "npm":
            with tarfile.open(file, "r:gz") as archive:
                yield from _plain(archive)
        else:
            with tarfile.open(fileobj=io.BytesIO(_debian(file)), mode="r:") as archive:
                yield from _plain(archive)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise TaskError(f"{file} is no readable package of {package.registry} with {package.name} in it: {error}") from error


def _debian(file: Path) -> bytes:
    if shutil.which("dpkg-deb") is None:
        raise TaskError("a .deb is unpacked with dpkg-deb, which is not here: install dpkg")
    if not file.is_file():
        raise TaskError(f"there is no file {file}")
    command = ["dpkg-deb", "--fsys-tarfile", str(file)]
    done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    if done.returncode:
        raise TaskError(f"{file} is no Debian package: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return done.stdout


def _plain(archive: tarfile.TarFile) -> Members:
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        if content is not None:
            yield PurePosixPath(member.name), content.read()
