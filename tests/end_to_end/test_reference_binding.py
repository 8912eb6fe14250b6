"""The study as a user runs it: on a pipeline's folder, with a second subject, taken up again, refused with a reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_page import Open, browser, opened, page_file  # noqa: F401 - fixtures

import generators
from chat_server import serving
from conftest import Mediant
from mediant.measures.picture_judge import Errors, PictureJudge
from mediant.studies.reference_binding.measures import PUBLISHED
from mediant.studies.reference_binding.verdicts import PROPERTIES
from mediant.zoo.drawn_judge.recipe import WORDS

TINY = ["--preset", "smoke", "--set", "n=2", "--set", "n_text=2", "--set", "steps=1", "--device", "cpu"]
ERRORS = Errors(95, 100, 4, 100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pipeline and a judge as they lie on disk."""
    base = tmp_path_factory.mktemp("models")
    generators.klein().pipeline.save_pretrained(base / "tiny-klein")
    (base / "tiny-klein" / "sampling.json").write_text('{"steps": 2, "slots": 112, "layers": [1, 2, 3]}')
    names = ("colour", "style", "identity", "kind", "place", "named colour")
    # It takes everyone for the same individual, so that of identity at least something is there to intervene on.
    untrained = replace(PictureJudge.untrained(WORDS), errors=dict.fromkeys(names, ERRORS), likeness=-1.0)
    untrained.save(base / "judge")
    return base / "tiny-klein", base / "judge"


@pytest.fixture(scope="module")
def finished(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mediant.cli import main

    model, judge = folders
    out = tmp_path_factory.mktemp("binding") / "run"
    given = ["--model", str(model), "--judge", str(judge), "--planted", str(model), "--out", str(out)]
    assert main(["run", "reference-binding", *given, *TINY]) == 0
    return out


def test_the_three_tables_are_measured_for_both_subjects(finished: Path):
    measures = json.loads((finished / "result.json").read_text(encoding="utf-8"))["measures"]
    wanted = [f"edit_success_{name}" for name in PROPERTIES] + ["t2i_concept_accuracy"]
    for what in PUBLISHED:
        head = what.removesuffix("_padding").removesuffix("_content")
        wanted += [f"{head}_{name}{what.removeprefix(head)}" for name in PROPERTIES]
    missing = [name + tail for name in wanted for tail in ("", "_planted") if name + tail not in measures]
    assert missing == []
    for name, m in measures.items():
        assert m["value"] is not None or m["reason"], name
        if m["control"]:
            assert m["control"] in measures or m["control"] + "_planted" in measures
        if m["ci95"] is not None:
            assert m["ci95"][0] - 1e-9 <= m["value"] <= m["ci95"][1] + 1e-9, name


def test_the_same_model_twice_gives_the_same_numbers_twice(finished: Path):
    measures = json.loads((finished / "result.json").read_text(encoding="utf-8"))["measures"]
    planted = {name: m["value"] for name, m in measures.items() if name.endswith("_planted")}
    assert planted == {name: measures[name.removesuffix("_planted")]["value"] for name in planted}
    # Padding dose-response and repair are asked of the natural subject alone.
    alone = {name for name in measures if not name.endswith("_planted") and f"{name}_planted" not in measures}
    assert {name.partition("_")[0] for name in alone} <= {"dose", "repair"}


def test_a_run_that_lost_its_end_ends_in_the_same_bytes(
    finished: Path, mediant: Mediant, folders: tuple[Path, Path], tmp_path: Path
):
    for file in ("manifest.json", "items.jsonl"):
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    lines = (tmp_path / "items.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_bytes(b"".join(lines[: len(lines) - 5]) + lines[-5][:40])
    model, judge = folders
    given = ["--model", model, "--judge", judge, "--planted", model, "--out", tmp_path, "--resume"]
    called = mediant("run", "reference-binding", *given, *TINY)
    assert called.code == 0, called.err
    assert (tmp_path / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_a_model_that_sees_is_asked_about_every_intervention(mediant: Mediant, folders: tuple[Path, Path], tmp_path: Path):
    model, judge = folders
    asked = []

    def reply(content: list) -> str:
        asked.append(sum(part["type"] == "image_url" for part in content))
        return '{"pass": 1, "reason": "so it seems"}'

    with serving(reply) as url:
        given = ["--model", model, "--judge", judge, "--out", tmp_path / "run", "--endpoint", url]
        called = mediant("run", "reference-binding", *given, *TINY)
    assert called.code == 0, called.err
    measures = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["measures"]
    judged = {name: m["value"] for name, m in measures.items() if name.endswith("_judged")}
    # Ten cells of three properties, two pictures each. A yes counts against cuts to the picture and individuals under the lens.
    assert (len(judged), len(asked), set(asked)) == (30, 60, {3, 4})
    against = {name for name, value in judged.items() if value == 0}
    assert against == {n for n in judged if "ref_to_image" in n or n.startswith("lens_identity")}


def test_tasks_in_the_published_format_are_judged_by_a_model_that_sees(
    mediant: Mediant, folders: tuple[Path, Path], tmp_path: Path
):
    given = ["--model", folders[0], "--tasks", written_tasks(tmp_path / "tasks"), *TINY]
    refused = ["--out", tmp_path / "no"]
    mediant("run", "reference-binding", *given, *refused).refuses("only colour can be told", "--endpoint")
    mediant("run", "reference-binding", *given, *refused, "--set", "n=4").refuses(
        "there are 3 pairs of colour to test on, 4 are asked for"
    )
    emoji = ["--model", folders[0], "--tasks", "emoji", *TINY, *refused]
    mediant("run", "reference-binding", *emoji).refuses("mediant data fetch emoji")
    style = ["--set", 'properties=["style"]', "--out", tmp_path / "style"]
    with serving(lambda content: '{"pass": 1, "reason": "so it seems"}') as url:
        called = mediant("run", "reference-binding", *given, *style, "--endpoint", url)
    assert called.code == 0, called.err
    result = json.loads((tmp_path / "style" / "result.json").read_text(encoding="utf-8"))
    measures = result["measures"]
    assert result["provenance"]["data"] == "tasks of tasks"
    # The judge sees the style everywhere, in empty runs as well, so there is nothing that could be lost or found.
    assert measures["edit_success_style"]["value"] == 1.0
    for name in ("knockout_ref_to_text_style", "lens_style", "patching_style"):
        assert (measures[name]["value"], measures[name]["reason"]) == (None, "no request was left to judge")
    assert measures["t2i_concept_accuracy"]["reason"] == "nothing is known of what these instructions name"
    assert not [name for name in measures if "colour" in name or "identity" in name]


def test_colours_of_tasks_are_told_by_arithmetic(mediant: Mediant, folders: tuple[Path, Path], tmp_path: Path):
    colour = ["--set", 'properties=["colour"]', "--out", tmp_path / "colour"]
    tasks = written_tasks(tmp_path / "tasks")
    called = mediant("run", "reference-binding", "--model", folders[0], "--tasks", tasks, *TINY, *colour)
    assert called.code == 0, called.err
    measures = json.loads((tmp_path / "colour" / "result.json").read_text(encoding="utf-8"))["measures"]
    assert measures["edit_success_colour"]["n"] == 2
    assert "Wilson" in measures["edit_success_colour"]["definition"]


def written_tasks(folder: Path) -> Path:
    """Six tasks of each property, which differ in the reference alone."""
    folder.mkdir()
    for file in ("solid_color", "style", "dreambench_humans"):
        lines = []
        for i in range(6):
            Image.fromarray(generators.picture(len(file) + i)).save(folder / f"{file}{i}.png")
            task = {"task_id": f"{file}-{i}", "instruction": "it", "height": 64, "width": 64, "noise_seed": i}
            lines.append(json.dumps(task | {"edit_type": "customize", "real_ref_name": f"{file}{i}.png", "real_ref_dir": "."}))
        (folder / f"{file}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on the model that comes with the package."""
    from mediant.cli import main

    out = tmp_path_factory.mktemp("shipped") / "run"
    size = ["--set", "n=8", "--set", "n_shown=3", "--set", "n_repair=2", "--device", "cpu"]
    assert main(["run", "reference-binding", "--preset", "smoke", *size, "--out", str(out)]) == 0
    return out


def test_on_the_shipped_model_what_is_cut_is_lost_and_every_part_of_the_study_has_something_to_say(shipped: Path):
    measures = json.loads((shipped / "result.json").read_text(encoding="utf-8"))["measures"]
    assert measures["edit_success_colour"]["value"] > 0.7
    assert measures["knockout_all_colour"]["value"] > 0.7
    assert measures["knockout_ref_to_text_colour_random"]["value"] < 0.4
    for name in PROPERTIES:
        for head in ("edit_success", "lens", "knockout_ref_to_text", "knockout_ref_to_image", "patching", "heads_ref_to_text"):
            assert measures[f"{head}_{name}"]["n"] >= 2, (head, name)
    assert {name.partition("_")[0] for name in measures} == {
        "edit", "lens", "knockout", "patching", "heads", "dose", "repair", "t2i"
    }  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_grids_flows_and_curves(shipped: Path, opened: Open, scheme: str):  # noqa: F811
    with opened(scheme, file=shipped / "index.html") as seen:
        assert seen.page.locator("table.grid img").count() > 100
        assert seen.page.locator(".figure .main-svg").count() >= 10
        assert seen.page.get_by_text("The paper's three tables").first.is_visible()


def test_wrong_models_are_refused_with_a_reason(mediant: Mediant, folders: tuple[Path, Path], tmp_path: Path):
    model, _ = folders
    mediant("run", "activation-patching", "--model", model, "--preset", "smoke", "--out", tmp_path / "a").refuses(
        "activation-patching is about a model that writes", "makes pictures"
    )
    mediant("run", "reference-binding", "--model", model, "--judge", tmp_path, *TINY, "--out", tmp_path / "b").refuses(
        "holds no judge"
    )
    broken = tmp_path / "kv"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "Flux2KleinKVPipeline"}')
    mediant("run", "reference-binding", "--model", broken, *TINY, "--out", tmp_path / "c").refuses("no parts with weights")
    (broken / "transformer").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (broken / "transformer" / name).write_bytes((model / "transformer" / name).read_bytes())
    mediant("run", "reference-binding", "--model", broken, *TINY, "--out", tmp_path / "d").refuses(
        "Flux2KleinKVPipeline is not supported", "load its folder as Flux2KleinPipeline"
    )
