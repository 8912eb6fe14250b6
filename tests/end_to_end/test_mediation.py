"""The study as a user runs it: her own model and pairs, every cell with its control or its reason, a second go, a silent page."""

import json
from pathlib import Path

import pytest
from test_page import Open, browser, opened, page_file  # noqa: F401 - fixtures

import trained
from conftest import Mediant

SMALL = [
    "--preset", "smoke", "--n-discovery", "8", "--n-validation", "6", "--batch-size", "6",
    "--set", 'kinds=["layer","sublayer","head","neuron","edge","coordinate","axis","feature","subspace"]',
    "--set", "share=0.1", "--set", "n=12", "--set", "n_texts=4",
    "--set", "shares=[0.05, 0.3]", "--epochs", "4", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that name the variable in which their prompts differ."""
    lines = trained.pair_lines(48)
    named = [line | {"variables": {"number": "many" if line["answer"] == " are" else "one"}} for line in lines]
    return trained.write_lines(tmp_path_factory.mktemp("data") / "numbered.jsonl", named)


def command(model: Path, task: Path, out: Path, *more: str) -> list[str]:
    return [
        "run",
        "mediation",
        "--model",
        str(model),
        "--task",
        str(task),
        "--variable",
        "number",
        "--out",
        str(out),
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def finished(agreement: Path, numbered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mediant.cli import main

    out = tmp_path_factory.mktemp("matrix") / "run"
    assert main(command(agreement, numbered, out)) == 0
    return out


def measures(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))["measures"]


def test_every_cell_has_a_value_with_its_control_or_a_reason(finished: Path):
    found = measures(finished)
    cells = [name.removesuffix("_faithfulness") for name in found if name.endswith("_faithfulness") and "_random_" not in name]
    ran = [cell for cell in cells if found[f"{cell}_faithfulness"]["value"] is not None]
    assert len(cells) >= 50
    assert len(ran) >= 45
    for cell in ran:
        one = found[f"{cell}_faithfulness"]
        assert one["ci95"][0] <= one["value"] <= one["ci95"][1], cell
        assert found[one["control"]]["value"] is not None, cell
    for cell in set(cells) - set(ran):
        assert found[f"{cell}_faithfulness"]["reason"], cell
    assert found["head_patching_generality"]["reason"] == "a file of pairs has no wording held out; generated tasks do"
    assert found["head_patching_faithfulness"]["n"] == 12


def test_what_is_exact_finds_as_much_as_there_is_where_one_place_holds_everything(finished: Path):
    found = measures(finished)
    # The last stream at the last token hands on everything, whatever it is.
    assert found["layer_patching_faithfulness"]["value"] == pytest.approx(1.0, abs=1e-4)
    assert found["head_patching_faithfulness"]["value"] > found["head_random_faithfulness"]["value"]
    assert found["subspace_difference_faithfulness"]["value"] > found["subspace_random_faithfulness"]["value"]


def test_a_run_taken_up_again_ends_in_the_same_bytes(mediant: Mediant, finished: Path, tmp_path: Path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("manifest.json", "items.jsonl"):
        (copy / name).write_bytes((finished / name).read_bytes())
    lines = (finished / "items.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "items.jsonl").write_bytes(b"".join(lines[:60]) + lines[60][:20])
    settings = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))["config"]
    called = mediant(*command(settings["model"], settings["task"], copy, "--resume"))
    assert called.code == 0, called.err
    assert (copy / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    assert (copy / "items.jsonl").read_bytes() == (finished / "items.jsonl").read_bytes()
    assert (copy / "index.html").read_bytes() == (finished / "index.html").read_bytes()


def test_pairs_without_a_variable_leave_probes_empty_with_the_way_out(
    mediant: Mediant, agreement: Path, pairs: Path, tmp_path: Path
):
    rows = ["--set", 'kinds=["sublayer","subspace"]']
    called = mediant("run", "mediation", "--model", agreement, "--task", pairs, "--out", tmp_path / "run", *SMALL, *rows)
    assert called.code == 0, called.err
    found = measures(tmp_path / "run")
    for cell in ("sublayer_probe", "subspace_mean_difference", "subspace_amnesic"):
        assert "name one with --variable" in found[f"{cell}_faithfulness"]["reason"]
    assert "head_patching_faithfulness" not in found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--set", "shares=[0.3, 0.1]"], ["shares must rise"]),
        (["--set", 'kinds=["heads"]'], ["kinds", "'layer'", "'subspace'"]),
        (["--site", "resid_post.9"], ["layer 9", "does not exist"]),
        (["--set", "n=60"], ["48 pairs", "n_discovery + n_validation + n = 74"]),
        (["--set", "n_texts=4000"], ["n_texts = 4000"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value[0].startswith("--") else "",
)  # fmt: skip
def test_wrong_settings_are_refused_before_work(
    mediant: Mediant, agreement: Path, numbered: Path, tmp_path: Path, changed: list[str], words: list[str]
):
    mediant(*command(agreement, numbered, tmp_path / "run", *changed)).refuses(*words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_in_silence(finished: Path, opened: Open, scheme: str):  # noqa: F811
    with opened(scheme=scheme, file=finished / "index.html") as seen:
        assert seen.said == []
        assert seen.asked == [(finished / "index.html").as_uri()]


def test_a_generator_of_pictures_fills_its_own_rows_and_shows_what_became_of_pictures(tmp_path: Path, capsys):
    from mediant.cli import main

    out = tmp_path / "pictures"
    rows = [each for kind in ("layer", "axis", "subspace", "edge") for each in ("--kinds", kind)]
    wanted = ["run", "mediation", "--subject", "drawn-flux", "--preset", "smoke", "--device", "cpu", "--out", str(out), *rows]
    assert main([*wanted, "--set", "n=8"]) == 0
    found = measures(out)
    cells = {name.removesuffix("_faithfulness") for name in found if name.endswith("_faithfulness") and "_random_" not in name}
    assert len(cells) == 6 + 6 + 7
    assert not any(name.startswith("edge") for name in found)
    assert found["layer_patching_faithfulness"]["value"] == pytest.approx(1.0, abs=0.05)
    assert found["layer_patching_leak"]["definition"].startswith("The same towards a picture with the same reference")
    assert all(found[name]["value"] is not None or found[name]["reason"] for name in found)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 4 * (4 + 3)
    edges = [*wanted[: -len(rows)], "--kinds", "edge"]
    edges[edges.index(str(out))] = str(tmp_path / "edges")
    assert main(edges) != 0
    assert "an image generator has no edges to search" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "edges").exists()
