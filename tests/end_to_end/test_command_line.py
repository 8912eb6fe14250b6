"""The command line from end to end: what a run leaves behind, and what every command says of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import trained
from conftest import Arguments, Mediant
from mediant.core.errors import RunError
from mediant.core.result import Measure, Result
from mediant.studies.activation_patching import task as data_of
from mediant.studies.activation_patching.config import Config
from mediant.subject import fetch, load

NAMED = [
    "accuracy", "argmax_accuracy", "total_effect", "top_heads_effect", "random_heads_effect", "layer_matched_heads_effect",
    "all_heads_effect", "strongest_head_effect", "top_heads_share", "top_heads_share_layer_matched", "sufficiency_top10",
    "sufficiency_layer_matched",
    "generality_heldout_template", "generality_layer_matched", "accuracy_heldout_template", "selectivity_kl",
    "selectivity_kl_layer_matched",
]  # fmt: skip


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def records_of(folder: Path, stage: str) -> list[dict]:
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["key"].startswith(stage)]


def effects_of(folder: Path, stage: str) -> dict[str, np.ndarray]:
    """Effects of head sets over all batches of a stage: (draw, pair)."""
    parts = [record["effects"] for record in records_of(folder, stage)]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def test_a_run_leaves_manifest_items_result_and_page_and_nothing_else(finished: Path):
    assert sorted(file.name for file in finished.iterdir()) == ["index.html", "items.jsonl", "manifest.json", "result.json"]


def test_the_result_follows_the_published_schema(finished: Path):
    result = result_of(finished)
    jsonschema.validate(result, Result.json_schema())
    assert list(result["measures"]) == NAMED
    assert [name for name, m in result["measures"].items() if not m["ci95"][0] <= m["value"] <= m["ci95"][1]] == []
    assert {name: m["n"] for name, m in result["measures"].items()} == {
        name: 8 if name.startswith("selectivity") else 16 if "general" in name or "heldout" in name else 20 for name in NAMED
    }


def test_the_result_says_which_model_settings_and_versions_it_came_from(finished: Path, agreement: Path, pairs: Path):
    origin = result_of(finished)["provenance"]
    assert (origin["model"], origin["family"], origin["dtype"], origin["device"]) == (str(agreement), "llama", "float32", "cpu")
    assert origin["config"] == json.loads((finished / "manifest.json").read_text())["config"]
    assert (origin["changed"]["n"], origin["config"]["n"], origin["config"]["seed"]) == (20, 20, 0)
    assert origin["versions"]["torch"] == torch.__version__
    assert origin["metric"] == "logprob_diff"
    assert len(origin["top_heads"]) == 2
    assert len(origin["model_sha256"]) == 64


@pytest.fixture(scope="module")
def by_hand(agreement: Path, pairs: Path) -> dict[str, np.ndarray]:
    """Log-probability differences of the confirmation pairs, from transformers alone, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(agreement)
    tokenizer = AutoTokenizer.from_pretrained(agreement)
    config = Config(model=str(agreement), task=str(pairs), n=20, n_discovery=12)
    found: dict[str, list[float]] = {"clean": [], "counterfactual": []}
    for pair in data_of.load(config, load(agreement, device="cpu")).confirm:
        answers = [tokenizer.convert_tokens_to_ids(text.strip()) for text in (pair.answer, pair.counterfactual_answer)]
        for side, prompt in (("clean", pair.clean), ("counterfactual", pair.counterfactual)):
            with torch.no_grad():
                logits = model(**tokenizer(prompt.text, return_tensors="pt")).logits[0, -1]
            found[side].append(float(logits.double().log_softmax(-1)[answers] @ torch.tensor([1.0, -1.0], dtype=torch.float64)))
    return {side: np.array(values) for side, values in found.items()}


def test_accuracy_and_total_effect_are_what_transformers_alone_gives(finished: Path, by_hand: dict[str, np.ndarray]):
    measures = result_of(finished)["measures"]
    assert measures["accuracy"]["value"] == (by_hand["clean"] > 0).mean()
    assert measures["total_effect"]["value"] == pytest.approx((by_hand["counterfactual"] - by_hand["clean"]).mean(), abs=1e-4)


def test_the_item_of_each_pair_is_what_transformers_alone_gives(finished: Path, by_hand: dict[str, np.ndarray]):
    records = records_of(finished, "confirm/")
    assert np.concatenate([r["before"] for r in records]) == pytest.approx(by_hand["clean"], abs=1e-4)
    assert np.concatenate([r["total"] for r in records]) == pytest.approx(by_hand["counterfactual"] - by_hand["clean"], abs=1e-4)


def test_a_model_that_learned_the_task_does_it_and_few_heads_carry_it(finished: Path):
    value = {name: m["value"] for name, m in result_of(finished)["measures"].items()}
    assert min(value["accuracy"], value["argmax_accuracy"], value["accuracy_heldout_template"]) >= 0.95
    # Embeddings of the two prompts' last tokens are equal, so only attention can tell them apart.
    assert value["all_heads_effect"] == pytest.approx(value["total_effect"], abs=1e-3)
    assert value["total_effect"] < value["top_heads_effect"] < value["layer_matched_heads_effect"] < 0.5
    assert 1 > value["top_heads_share"] > 0.3
    assert value["sufficiency_top10"] > value["sufficiency_layer_matched"]


def test_measures_are_means_of_the_stored_items(finished: Path):
    value = {name: m["value"] for name, m in result_of(finished)["measures"].items()}
    joined, restored = effects_of(finished, "confirm/"), effects_of(finished, "restore/")
    assert {name: table.shape for name, table in joined.items()} == {
        "total": (1, 20), "top": (1, 20), "layer_matched": (3, 20), "strongest": (1, 20), "random": (3, 20), "all": (1, 20)
    }  # fmt: skip
    assert value["top_heads_effect"] == pytest.approx(joined["top"].mean())
    assert value["random_heads_effect"] == pytest.approx(joined["random"].mean())
    assert value["layer_matched_heads_effect"] == pytest.approx(joined["layer_matched"].mean())
    assert value["strongest_head_effect"] == pytest.approx(joined["strongest"].mean())
    assert value["sufficiency_top10"] == pytest.approx(restored["top"].mean() / restored["total"].mean())
    assert value["sufficiency_layer_matched"] == pytest.approx(restored["layer_matched"].mean() / restored["total"].mean())
    assert value["selectivity_kl"] == pytest.approx(np.mean([r["kl"][0] for r in records_of(finished, "texts/")]))


def test_every_control_that_is_named_is_among_the_measures_and_on_the_same_pairs(
    mediant: Mediant, arguments: Arguments, tmp_path: Path
):
    one_template = [line for line in trained.pair_lines(96) if line["template"] == "near"]
    file = trained.write_lines(tmp_path / "pairs.jsonl", one_template)
    assert mediant(*arguments(tmp_path / "run", task=file)).code == 0
    measures = result_of(tmp_path / "run")["measures"]
    unmatched = [name for name, m in measures.items() if m["control"] and measures.get(m["control"], {"n": 0})["n"] != m["n"]]
    assert unmatched == []


def test_without_a_template_to_hold_out_generality_is_null_with_a_reason(mediant: Mediant, arguments: Arguments, tmp_path: Path):
    file = trained.write_lines(tmp_path / "pairs.jsonl", [{**line, "template": ""} for line in trained.pair_lines(24)])
    assert mediant(*arguments(tmp_path / "run", task=file)).code == 0
    found = result_of(tmp_path / "run")["measures"]
    missing = found["generality_heldout_template"]
    assert (missing["value"], missing["n"]) == (None, 0)
    assert missing["reason"] == "the file names fewer than two templates, so none could be held out"
    assert (found["accuracy"]["n"], "accuracy_heldout_template" in found) == (12, False)
    shown = mediant("show", tmp_path / "run").out
    assert "generality_heldout_template" in shown
    assert "(the file names fewer than two templates, so none could be held out)" in shown


def test_a_single_held_out_pair_has_no_interval(mediant: Mediant, arguments: Arguments, tmp_path: Path):
    lines = trained.pair_lines(24)
    file = trained.write_lines(tmp_path / "pairs.jsonl", [lines[1], *lines[0::3]])
    assert mediant(*arguments(tmp_path / "run", task=file)).code == 0
    measure = result_of(tmp_path / "run")["measures"]["generality_heldout_template"]
    assert (measure["n"], measure["ci95"]) == (1, None)


def test_two_runs_of_one_order_give_the_same_bytes(mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path):
    assert mediant(*arguments(tmp_path / "again")).code == 0
    for name in ("result.json", "items.jsonl", "index.html", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_json_prints_the_result_alone_and_shows_no_progress(
    mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path
):
    called = mediant(*arguments(tmp_path / "run", "--json", seed=3))
    assert (called.code, called.err) == (0, "")
    assert called.out.rstrip("\n") == (tmp_path / "run" / "result.json").read_text().rstrip("\n")
    other, first = json.loads(called.out), result_of(finished)
    assert other["provenance"]["config"] == first["provenance"]["config"] | {"seed": 3}
    assert other["measures"] != first["measures"]


def test_a_finished_run_resumed_is_not_computed_again(mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "result.json").unlink()
    assert mediant(*arguments(folder, "--resume")).code == 0
    for name in ("result.json", "items.jsonl", "index.html"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_run_ends_by_saying_its_measures_and_where_the_page_is(
    mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path
):
    folder = shutil.copytree(finished, tmp_path / "run")
    called = mediant(*arguments(folder, "--resume"))
    lines = called.out.splitlines()
    assert [line.split()[0] for line in lines[: len(NAMED)]] == NAMED
    assert lines[len(NAMED) :] == ["", f"page: {folder / 'index.html'}"]
    assert "ranking heads" in called.err
    accuracy = result_of(folder)["measures"]["accuracy"]
    assert lines[0].split()[1:] == [f"{accuracy['value']:+.4f}", "[+1.0000,", "+1.0000]", "n", "=", "20"]


def test_show_gives_every_measure_every_limit_and_the_page(mediant: Mediant, finished: Path):
    called = mediant("show", finished)
    assert (called.code, called.err) == (0, "")
    table, limits = called.out.split("\nWhat this does not show:\n")
    assert [line.split()[0] for line in table.splitlines()] == NAMED
    for line, m in zip(table.splitlines(), result_of(finished)["measures"].values(), strict=True):
        assert f"{m['value']:+.4f}" in line
        assert f"[{m['ci95'][0]:+.4f}, {m['ci95'][1]:+.4f}]" in line
    expected = [f"- {limit}" for limit in result_of(finished)["limits"]]
    assert limits.splitlines() == [*expected, "", f"page: {finished / 'index.html'}"]


def test_show_json_is_the_file(mediant: Mediant, finished: Path):
    assert mediant("show", finished, "--json").out == (finished / "result.json").read_text() + "\n"


def written(folder: Path, **measures: tuple[float | None, tuple[float, float] | None]) -> Path:
    folder.mkdir()
    made = {
        name: Measure(value=value, n=5, ci95=ci95, definition="d", control=None, reason="r")
        for name, (value, ci95) in measures.items()
    }
    Result(study="s", preset="p", measures=made, limits=["l"], provenance={}).save(folder / "result.json")
    return folder


def test_compare_marks_the_intervals_that_do_not_overlap(mediant: Mediant, tmp_path: Path):
    apart, both = {"below": (1.0, (0.5, 1.5)), "same": (1.0, (0.5, 1.5)), "above": (9.0, (8.0, 10.0))}, {"none": (None, None)}
    first = written(tmp_path / "a", **apart, **both, only=(2.0, None))
    apart = {"below": (2.0, (1.6, 2.5)), "same": (2.0, (1.5, 2.5)), "above": (1.0, (0.0, 2.0))}
    second = written(tmp_path / "b", **apart, **both, new=(3.0, (3.0, 3.0)))
    called = mediant("compare", first, second)
    assert called.code == 0
    assert [line.split() for line in called.out.splitlines()] == [
        ["measure", "first", "second"],
        ["below", "1.0000", "2.0000", "*"],
        ["same", "1.0000", "2.0000"],
        ["above", "9.0000", "1.0000", "*"],
        ["none", "-", "-"],
        ["only", "2.0000", "-"],
        ["new", "-", "3.0000"],
    ]
    rows = json.loads(mediant("compare", first, second, "--json").out)
    assert rows[0] == {"measure": "below", "first": 1.0, "second": 2.0, "apart": True}
    assert [row["apart"] for row in rows] == [True, False, True, False, False, False]


def test_compare_of_two_runs_lists_every_measure(mediant: Mediant, finished: Path):
    called = mediant("compare", finished, finished)
    assert called.err == ""
    rows = [line.split() for line in called.out.splitlines()][1:]
    assert [row[0] for row in rows] == NAMED
    assert [row for row in rows if row[1] != row[2] or "*" in row] == []


def test_list_names_the_studies_and_the_presets_of_one(mediant: Mediant):
    assert mediant("list").out.splitlines()[:2] == [
        "activation-patching     Which layers, heads and positions carry the answer",
        "                        presets: bundled, full, paper, smoke",
    ]
    lines = mediant("list", "activation-patching").out.splitlines()
    assert [line.split()[0] for line in lines] == ["bundled", "full", "paper", "smoke"]
    assert "batch_size = 8" in lines[3]
    assert list(json.loads(mediant("list", "--json").out)["activation-patching"]) == ["title", "presets"]
    presets = json.loads(mediant("list", "activation-patching", "--json").out)
    assert (presets["smoke"]["n"], presets["smoke"]["top_k"], presets["paper"]["model"]) == (8, 10, "openai-community/gpt2")


def test_models_says_what_is_fetched_and_how_to_fetch_the_rest(mediant: Mediant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path))
    lines = [line.split() for line in mediant("models").out.splitlines()]
    at = lines.index(["smollm2-135m", "SmolLM2", "135M", "Instruct"])
    assert " ".join(lines[at + 1]) == "not here yet: mediant models fetch smollm2-135m"
    at = lines.index(["comic-vlm-frozen", "Comic", "VLM,", "frozen", "eyes"])
    assert lines[at + 1][-1].endswith("zoo/comic_vlm_frozen/model")
    at = lines.index(["comic-vlm", "Comic", "VLM"])
    assert lines[at + 1][-1].endswith("zoo/comic_vlm/model")


def test_doctor_names_versions_devices_and_models(mediant: Mediant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "not" / "made" / "yet"))
    called = mediant("doctor")
    assert called.code == 0
    found = dict(line.lstrip(" !").split(maxsplit=1) for line in called.out.splitlines())
    assert (found["torch"], found["smollm2-135m"]) == (torch.__version__, "not here; mediant models fetch smollm2-135m")
    assert found["devices"].startswith("cpu (1 threads)")
    assert found["cache"].startswith(str(tmp_path))
    assert [
        line for line in called.out.splitlines() if line.startswith("!") and "torchvision" not in line and "cache" not in line
    ] == []


def test_doctor_asks_for_what_is_missing(mediant: Mediant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mediant.doctor.NEEDED", ("torch", "no-such-package-anywhere"))
    assert "! no-such-package-anywhere is missing: run `make install`" in mediant("doctor").out.splitlines()


def test_data_lists_the_tasks_and_shows_pairs_of_one(mediant: Mediant, pairs: Path):
    made, fetched = mediant("data").out.split("\n\nto be fetched:\n")
    assert [line.split()[0] for line in fetched.splitlines()] == ["comic-characters", "emoji", "photo-cutouts"]
    assert [line.split()[0] for line in made.splitlines()] == [
        "ioi",
        "pronouns",
        "agreement",
        "arithmetic",
        "colours",
        "greater-than",
        "docstring",
        "induction",
        "panels",
    ]
    shown = mediant("data", "show", "agreement", "--n", "2", "--seed", "5").out.splitlines()
    assert len(shown) == 6
    assert shown != mediant("data", "show", "agreement", "--n", "2", "--seed", "6").out.splitlines()
    first = trained.pair_lines()[0]
    assert mediant("data", "show", pairs, "--n", "1").out.splitlines() == [
        f"line-1  [{first['template']}]",
        f"  clean           {first['clean']!r} -> {first['answer']!r}",
        f"  counterfactual  {first['counterfactual']!r} -> {first['counterfactual_answer']!r}",
    ]


def test_data_check_says_how_many_pairs_fit(mediant: Mediant, agreement: Path, pairs: Path):
    expected = f"48 pairs fit {agreement}; spans shared by all: subject, other\n"
    assert mediant("data", "check", pairs, "--model", agreement).out == expected


def test_data_check_names_every_pair_that_does_not_fit(mediant: Mediant, agreement: Path, tmp_path: Path):
    lines = [
        {"clean": "The keys are", "counterfactual": "The key near the", "answer": " are", "counterfactual_answer": " is"},
        {"clean": "The keys near", "counterfactual": "The key near", "answer": " are", "counterfactual_answer": " is"},
        {"clean": "The keys near", "counterfactual": "The key near", "answer": " are", "counterfactual_answer": " is"},
        {"clean": "The keys", "counterfactual": "The key near the", "answer": " are", "counterfactual_answer": " is"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    called = mediant("data", "check", file, "--model", agreement)
    assert called.code == 2
    assert "3 of 4 pairs do not fit" in called.err
    assert all(f"pair line-{i}" in called.err for i in (1, 3, 4))
    assert "pair line-3 has the prompts of pair line-2 again" in called.err


def test_compare_says_in_what_runs_are_unlike(mediant: Mediant, tmp_path: Path):
    first, second = written(tmp_path / "a", x=(1.0, None)), written(tmp_path / "b", x=(1.0, None))
    changed = json.loads((second / "result.json").read_text(encoding="utf-8"))
    changed["preset"], changed["provenance"]["metric"] = "full", "prob_diff"
    (second / "result.json").write_text(json.dumps(changed), encoding="utf-8")
    called = mediant("compare", first, second)
    assert called.code == 0
    assert "the runs differ in preset" in called.err
    assert "the runs differ in metric: None and prob_diff" in called.err


def test_a_dry_run_prints_the_settings_and_touches_nothing(
    mediant: Mediant, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    called = mediant(*arguments(None, "--dry-run", "--preset", "smoke", "--set", "seed=4", "--set", "rank-by=most_negative"))
    plan = json.loads(called.out)
    assert (plan["study"], plan["preset"]) == ("activation-patching", "smoke")
    assert plan["out"] == "runs/activation-patching/smoke-agreement-seed4"
    assert (plan["config"]["n"], plan["config"]["seed"], plan["config"]["rank_by"]) == (20, 4, "most_negative")
    assert (plan["config"]["dtype"], plan["config"]["metric"]) == ("float32", None)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_numbered_on_when_it_is_taken(mediant: Mediant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    base = Path("runs/activation-patching")
    (base / "smoke-smollm2-135m-seed0").mkdir(parents=True)
    (base / "smoke-smollm2-135m-seed0-2").mkdir()
    order = ["run", "activation-patching", "--preset", "smoke", "--dry-run"]
    assert json.loads(mediant(*order).out)["out"] == str(base / "smoke-smollm2-135m-seed0-3")
    assert json.loads(mediant(*order, "--resume").out)["out"] == str(base / "smoke-smollm2-135m-seed0")


def test_help_lists_every_setting_with_its_description(mediant: Mediant):
    called = mediant("run", "activation-patching", "--help")
    assert called.code == 0
    text = " ".join(called.out.replace("│", " ").split())
    for name, info in Config.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert (info.description or "nothing")[:30] in text


HEAVY = ("torch", "transformers", "numpy", "plotly", "jinja2", "rich.progress")
PROBE = f"""
import contextlib, io, sys
from mediant.cli import main
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(words.split())
    print(words, *[name for name in {HEAVY!r} if name in sys.modules], sep="|")
"""


def test_commands_that_load_no_model_import_no_heavy_package():
    light = ["--help", "--version", "run activation-patching --help", "list", "list activation-patching", "models", "data"]
    light += ["data show ioi", "run activation-patching --dry-run", "run activation-patching --n 3"]
    done = subprocess.run([sys.executable, "-c", PROBE, *light], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == light


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mediant", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.1.0\n", "")


def test_an_interrupted_run_says_how_to_go_on(
    mediant: Mediant, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mediant.studies.activation_patching.method.confirm", interrupted)
    called = mediant(*arguments(tmp_path / "run", "--json"))
    assert (called.code, called.err) == (130, "interrupted; finished work is kept, go on with --resume\n")
    assert records_of(tmp_path / "run", "heads/") != []


def test_a_broken_result_file_is_refused_by_the_library(tmp_path: Path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(RunError, match="is not a result of this version"):
        Result.load(tmp_path / "result.json")


@pytest.mark.smollm2
def test_the_smoke_preset_runs_on_the_bundled_model(mediant: Mediant, tmp_path: Path):
    if fetch.is_fetched("smollm2-135m") is None:
        pytest.fail("smollm2-135m is not fetched: run `make install` or `mediant models fetch smollm2-135m`")
    called = mediant("run", "activation-patching", "--preset", "smoke", "--device", "cpu", "--out", tmp_path / "run", "--json")
    assert (called.code, called.err) == (0, "")
    result = json.loads(called.out)
    jsonschema.validate(result, Result.json_schema())
    assert list(result["measures"]) == NAMED
    assert result["measures"]["accuracy"]["value"] >= 0.75
    assert result["measures"]["total_effect"]["value"] < 0
    assert len(result["provenance"]["top_heads"]) == 10
