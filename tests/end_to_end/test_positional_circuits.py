"""The study as a user runs it: her own model and file, a second go at a killed run, refusals, and a silent page."""

import json
from pathlib import Path

import pytest
from test_page import Open, browser, opened, page_file  # noqa: F401 - fixtures

import trained
from conftest import Mediant
from mediant.core.circuit import Circuit
from mediant.core.edge_scores import EdgeScores
from mediant.search.circuits import greedy

SMALL = ["--preset", "smoke", "--n", "24", "--n-discovery", "12", "--batch-size", "8", "--n-sizes", "6", "--device", "cpu"]
NAMED = [
    "accuracy", "edges_positional_at_0.8", "edges_nonpositional_at_0.8", "edge_ratio_at_0.8", "abstract_edge_ratio_at_0.8",
    "edge_ratio_without_crossing_at_0.8", "edge_ratio_shuffled_spans", "cpr", "cmd", "cpr_random", "cmd_random",
    "stability_jaccard_at_0.8",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(agreement: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mediant.cli import main

    out = tmp_path_factory.mktemp("circuits") / "run"
    assert main(["run", "positional-circuits", "--model", str(agreement), "--task", str(pairs), "--out", str(out), *SMALL]) == 0
    return out


def test_every_measure_is_there_with_its_number_of_pairs_and_interval(finished: Path):
    measures = json.loads((finished / "result.json").read_text(encoding="utf-8"))["measures"]
    assert set(NAMED) <= set(measures)
    for name in NAMED:
        m = measures[name]
        assert m["value"] is not None or m["reason"], name
        if m["value"] is not None:
            assert m["n"] >= 12, name
            assert m["ci95"][0] <= m["value"] <= m["ci95"][1], name
    assert measures["accuracy"]["value"] == 1.0


def test_the_page_says_in_all_three_ways_of_counting_whether_positions_help(finished: Path):
    limits = json.loads((finished / "result.json").read_text(encoding="utf-8"))["limits"]
    verdict = limits[-1]
    for counted in ("concrete edges:", "edges between spans:", "without crossing ones:", "shuffled spans"):
        assert counted in verdict


def test_a_run_taken_up_again_ends_in_the_same_bytes_and_does_nothing_twice(mediant: Mediant, finished: Path, tmp_path: Path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in finished.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    lines = (finished / "items.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "items.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (copy / "result.json").unlink()
    settings = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))["config"]
    called = mediant(
        "run", "positional-circuits", "--model", settings["model"], "--task", settings["task"], "--out", copy, *SMALL, "--resume"
    )
    assert called.code == 0, called.err
    assert (copy / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    assert (copy / "items.jsonl").read_bytes() == (finished / "items.jsonl").read_bytes()
    assert (copy / "index.html").read_bytes() == (finished / "index.html").read_bytes()


def test_the_scores_in_the_folder_give_the_circuits_again(finished: Path, tmp_path: Path):
    scores = EdgeScores.load(next(finished.glob("scores-*-true.safetensors")))
    circuit = greedy(scores).circuit(60)
    circuit.save(tmp_path / "circuit.json")
    assert 0 < Circuit.load(tmp_path / "circuit.json").n_edges == circuit.n_edges


def test_spans_in_another_order_are_refused_with_the_items_named(mediant: Mediant, agreement: Path, tmp_path: Path):
    lines = list(trained.pair_lines())
    for i in (4, 9):
        words = lines[i]["clean"].split()
        lines[i] = {**lines[i], "spans": {"subject": words[-1], "other": words[1] if words[1] not in words[2:] else words[0]}}
    file = trained.write_lines(tmp_path / "mixed.jsonl", lines)
    called = mediant("run", "positional-circuits", "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL)
    called.refuses("same order in all prompts", "subject", "other")


def test_a_file_without_spans_is_refused(mediant: Mediant, agreement: Path, tmp_path: Path):
    lines = [{k: v for k, v in line.items() if k != "spans"} for line in trained.pair_lines()]
    file = trained.write_lines(tmp_path / "bare.jsonl", lines)
    called = mediant("run", "positional-circuits", "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL)
    called.refuses("share no named span")


@pytest.mark.parametrize("changed", [["--ablation", "mean"], ["--ablation", "zero", "--method", "eap"], ["--frugal"]])
def test_other_ablations_and_frugal_growth_run_through_the_same_command(
    mediant: Mediant, agreement: Path, pairs: Path, finished: Path, tmp_path: Path, changed: list[str]
):
    called = mediant(
        "run", "positional-circuits", "--model", agreement, "--task", pairs, "--out", tmp_path / "run", *SMALL, *changed
    )
    assert called.code == 0, called.err
    found, before = (
        json.loads((folder / "result.json").read_text(encoding="utf-8"))["measures"] for folder in (tmp_path / "run", finished)
    )
    assert found["full_metric"] == before["full_metric"]
    if "--ablation" in changed:
        assert found["empty_metric"]["value"] != pytest.approx(before["empty_metric"]["value"], abs=0.1)
        assert changed[1] in found["empty_metric"]["definition"]
    else:
        assert found["empty_metric"] == before["empty_metric"]
        assert found["cpr"] == before["cpr"]  # ranked by helpfulness, with the benchmark's shares


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_the_page_is_drawn_in_silence(opened: Open, finished: Path, scheme: str, width: int):  # noqa: F811
    file = finished / "index.html"
    with opened(scheme, width, file) as seen:
        figures = seen.page.locator(".figure")
        assert figures.count() == 3
        assert [figures.nth(i).locator("svg.main-svg").count() > 0 for i in range(3)] == [True] * 3
        assert seen.asked == [file.as_uri()]
        assert seen.said == []


@pytest.mark.browser
def test_the_slider_of_the_circuit_changes_what_is_drawn(opened: Open, finished: Path):  # noqa: F811
    with opened("light", 1200, finished / "index.html") as seen:
        circuit = seen.page.locator(".figure").nth(1)
        shown = "n => n.data.map(t => t.visible !== false)"
        before = circuit.evaluate(shown)
        assert any(before)
        assert not all(before)
        circuit.evaluate("n => Plotly.update(n, n.layout.sliders[0].steps[0].args[0])")
        after = circuit.evaluate(shown)
        assert after[0] is True
        assert after != before
