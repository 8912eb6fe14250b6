"""The study as a user runs it: on any family's folder, on her own strips and pictures, taken up again, refused with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_page import Open, browser, opened, page_file  # noqa: F401 - fixtures

from chat_server import serving
from conftest import Mediant
from eyes import BUILDERS, vision_subject
from mediant.studies.gaze_heads import task
from mediant.studies.gaze_heads.config import Config
from mediant.subject import load
from mediant.subject.vision import VisionSubject
from mediant.tasks.foreign.sets import LAYOUT

TINY = ["--preset", "smoke", "--set", "panels=2", "--set", "n=2", "--set", "draws=1", "--set", "ks=[1,2]", "--device", "cpu"]
TINY += ["--set", "n_dynamic=1", "--set", "n_regions=1", "--set", "segment_tokens=3", "--set", "narration_tokens=4"]
TINY += ["--set", "answer_tokens=4"]
MEASURED = ["diagonal_score_top10", "routing_accuracy_best", "vqa_redirect_accuracy", "k_share_of_heads"]
CONTROLS = ["as_published", "random", "layer_matched_random", "bottom5", "all"]


def written(vlm: VisionSubject, folder: Path) -> Path:
    """A checkpoint folder as a hub would have it."""
    vlm.model.save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    vlm.image_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(vision_subject(), tmp_path_factory.mktemp("models") / "tiny-qwen3-vl")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mediant.cli import main

    out = tmp_path_factory.mktemp("gaze") / "run"
    assert main(["run", "gaze-heads", "--model", str(folder), "--out", str(out), *TINY]) == 0
    return out


@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "qwen3-vl"])
def test_the_same_command_runs_on_every_family_s_folder(mediant: Mediant, family: str, tmp_path: Path):
    model = written(vision_subject(family), tmp_path / "model")
    called = mediant("run", "gaze-heads", "--model", model, "--out", tmp_path / "run", *TINY)
    assert called.code == 0, called.err
    measures = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["measures"]
    assert measures["k_share_of_heads"]["value"] in (1 / 12, 2 / 12)
    assert (tmp_path / "run" / "index.html").stat().st_size > 100_000


def test_a_twin_that_is_the_model_itself_has_the_same_numbers(mediant: Mediant, folder: Path, tmp_path: Path):
    called = mediant("run", "gaze-heads", "--model", folder, "--twin", folder, "--out", tmp_path / "run", *TINY)
    assert called.code == 0, called.err
    measures = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["measures"]
    twins = {name.removesuffix("_twin"): m for name, m in measures.items() if name.endswith("_twin")}
    assert {
        "caption_accuracy",
        "diagonal_score_top10",
        "vqa_redirect_accuracy",
        "vqa_redirect_accuracy_layer_matched_random",
    } < set(twins)
    for name, m in twins.items():
        assert (m["value"], m["ci95"], m["n"]) == (measures[name]["value"], measures[name]["ci95"], measures[name]["n"]), name
    items = (tmp_path / "run" / "items.jsonl").read_text(encoding="utf-8")
    assert '"key":"twin/gaze/discovery/' in items
    assert "twin/vqa/all" not in items
    mediant("run", "gaze-heads", "--model", folder, "--twin", "smollm2-135", "--out", tmp_path / "b", *TINY).refuses(
        "unknown model"
    )


def test_every_measure_stands_beside_its_controls(finished: Path):
    measures = json.loads((finished / "result.json").read_text(encoding="utf-8"))["measures"]
    names = [*MEASURED, *(f"{name}_{tail}" for name in MEASURED for tail in CONTROLS)]
    names += ["caption_accuracy_as_published", *(f"panel_share_carried_{tail}" for tail in CONTROLS[1:])]
    names += [f"region_accuracy_{size}" for size in ("small", "medium", "large")]
    names += ["caption_accuracy", "vqa_redirect_attributes", "narration_redirect_accuracy", "dynamic_segment_accuracy"]
    assert [name for name in names if name not in measures] == []
    for name, m in measures.items():
        assert m["value"] is not None or m["reason"], name
        if m["ci95"] is not None:
            assert m["ci95"][0] <= m["value"] <= m["ci95"][1], name
    assert measures["vqa_redirect_accuracy"]["control"] == "vqa_redirect_accuracy_layer_matched_random"
    assert measures["k_share_of_heads_all"]["value"] == 1.0


def test_a_run_taken_up_again_ends_in_the_same_bytes(mediant: Mediant, finished: Path, folder: Path, tmp_path: Path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in finished.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    lines = (finished / "items.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "items.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:20])
    (copy / "result.json").unlink()
    called = mediant("run", "gaze-heads", "--model", folder, "--out", copy, "--resume", *TINY)
    assert called.code == 0, called.err
    assert (copy / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    assert sorted((copy / "items.jsonl").read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in lines)


def test_her_own_strips_and_pictures(mediant: Mediant, folder: Path, tmp_path: Path):
    """Strips without captions get the model's own; regions come in COCO's form."""
    random = np.random.default_rng(0)
    for i in range(5):
        place = tmp_path / "strips" / f"comic{i}"
        place.mkdir(parents=True)
        for k in (1, 2):
            Image.fromarray(random.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(place / f"p{k}.jpg")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(photos / "one.png")
    things = [{"image_id": 1, "category_id": 1, "bbox": [3, 3, 30, 30]}]
    data = {"images": [{"id": 1, "file_name": "one.png"}], "annotations": things, "categories": [{"id": 1, "name": "frog"}]}
    (photos / "annotations.json").write_text(json.dumps(data))
    called = mediant(
        "run",
        "gaze-heads",
        "--model",
        folder,
        "--out",
        tmp_path / "run",
        *TINY,
        "--data",
        tmp_path / "strips",
        "--regions",
        photos,
    )
    assert called.code == 0, called.err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert any("the subject's own words" in limit for limit in result["limits"])
    assert "vqa_redirect_attributes" not in result["measures"]
    assert result["measures"]["region_accuracy_small"]["n"] + result["measures"]["region_accuracy_large"]["n"] <= 1


def test_a_model_may_be_judged_by_its_own_words(mediant: Mediant, folder: Path, tmp_path: Path):
    """What it says of each panel and thing cut out alone is then what counts as right."""
    called = mediant("run", "gaze-heads", "--model", folder, "--out", tmp_path / "run", *TINY, "--captions", "own")
    assert called.code == 0, called.err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert any("the subject's own words" in limit for limit in result["limits"])
    assert "nearest to the target panel's caption" in result["measures"]["caption_accuracy"]["definition"]
    items = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    named = {item["key"]: item for item in items if item["key"].startswith("captions/")}
    vlm, config = load(str(folder), device="cpu"), Config(panels=2, n=2, n_discovery=2, n_validation=1, n_regions=1)
    strip, picture = task.load(config, vlm).test[0], task.load(config, vlm).regions[0]
    for pixels, boxes, question, said in (
        (strip.pixels, strip.boxes, config.question_this, named["captions/test"]["captions"][0]),
        (picture.pixels, picture.boxes, config.question_here, named["captions/regions"]["names"][0][0]),
    ):
        for (left, top, right, bottom), words in zip(boxes, said, strict=True):
            alone = pixels[int(top) : int(bottom), int(left) : int(right)]
            assert vlm.answer(alone, question, max_new_tokens=4) == words


def test_a_fetched_set_is_named_and_one_that_is_not_here_says_how_to_get_it(
    mediant: Mediant, folder: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "cache"))
    more = ["--model", folder, "--out", tmp_path / "run", *TINY, "--data", "comic-characters"]
    mediant("run", "gaze-heads", *more).refuses("mediant data fetch comic-characters")
    place = tmp_path / "cache" / "data" / "comic-characters"
    for i in range(5):
        (place / f"comic{i}").mkdir(parents=True)
        for k in (1, 2):
            Image.fromarray(np.full((96, 96, 3), 40 * i + k, dtype=np.uint8)).save(place / f"comic{i}" / f"p{k}.png")
        (place / f"comic{i}" / "captions.json").write_text(json.dumps([f"Fox {i}.", f"Frog {i}."]))
    (place / "SOURCE.json").write_text(json.dumps({"layout": LAYOUT}))
    called = mediant("run", "gaze-heads", *more, "--set", "height=64")
    assert called.code == 0, called.err
    manifest = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["provenance"]
    assert manifest["data"] == "comic-characters"


def test_what_cannot_be_run_is_refused_with_the_reason(mediant: Mediant, folder: Path, agreement: Path, tmp_path: Path):
    out = ["--out", str(tmp_path / "run")]
    mediant("run", "gaze-heads", "--model", agreement, *out, *TINY).refuses("looks at no images", "comic-vlm")
    mediant("run", "gaze-heads", "--model", folder, "--data", tmp_path, *out, *TINY).refuses("gives 0 strips of 2 panels")
    mediant("run", "gaze-heads", "--model", folder, "--regions", tmp_path, *out, *TINY).refuses("annotations.json")
    mediant("run", "gaze-heads", "--model", folder, "--question-panel", "What?", *out, *TINY).refuses("needs {k}")
    mediant("run", "gaze-heads", "--model", folder, *out, *TINY, "--set", "ks=[-1]").refuses("from 1 on, or 0 for all")


def test_a_family_that_crops_strips_says_which_panels_it_cannot_see(mediant: Mediant, tmp_path: Path):
    model = written(vision_subject("llava"), tmp_path / "model")
    more = [*TINY, "--set", "panels=6"]
    mediant("run", "gaze-heads", "--model", model, "--out", tmp_path / "run", *more).refuses(
        "holds no image token's middle", "384 x 64"
    )


def test_a_folder_without_its_image_processor_is_refused(mediant: Mediant, folder: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if file.name != "preprocessor_config.json":
            (bare / file.name).write_bytes(file.read_bytes())
    mediant("run", "gaze-heads", "--model", bare, "--out", tmp_path / "run", *TINY).refuses(
        "bare has none of preprocessor_config.json"
    )


def test_a_judge_that_sees_may_be_asked_about_every_steered_answer(mediant: Mediant, folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked: list[int] = []

    def second_panel(content: list[dict]) -> str:
        asked.append(len(content[0]["image_url"]["url"]))
        return '{"matched_panel": 2, "is_junk": false, "reasoning": "it says so"}'

    with serving(second_panel) as url:
        called = mediant("run", "gaze-heads", "--model", folder, "--out", tmp_path / "run", *TINY, "--endpoint", url)
    assert called.code == 0, called.err
    measures = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["measures"]
    names = [
        "vqa_redirect_accuracy_judged",
        "vqa_redirect_accuracy_judged_layer_matched_random",
        "vqa_redirect_accuracy_judged_all",
    ]
    assert [name for name in names if name not in measures] == []
    # It always says the second panel, which is one target in two where none is left out.
    lines = (tmp_path / "run" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = {record["key"]: record for record in map(json.loads, lines)}
    answers, verdicts = items["vqa/gaze/0"]["answers"], items["judge/gaze/0"]["verdicts"]
    assert [v["panel"] for v in verdicts] == [1 if a["text"].strip() else None for a in answers]
    assert min(asked) > 1000
    bad = ["--endpoint", "http://127.0.0.1:9/v1"]
    mediant("run", "gaze-heads", "--model", folder, "--out", tmp_path / "run2", *TINY, *bad).refuses("127.0.0.1:9")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_strips_with_frames_and_asks_for_nothing(finished: Path, opened: Open, scheme: str):  # noqa: F811
    with opened(scheme, file=finished / "index.html") as seen:
        frames = seen.page.locator(".images .frame:visible")
        assert frames.count() >= 2
        first = seen.page.locator(".images figure").nth(1)
        image, frame = first.locator("img").bounding_box(), first.locator(".frame").bounding_box()
        # The first panel of two is the left half.
        assert frame["x"] == pytest.approx(image["x"], abs=1)
        assert frame["width"] == pytest.approx(image["width"] / 2, abs=1)
        assert seen.page.evaluate("document.images[0].naturalWidth") > 0
        assert not [url for url in seen.asked if not url.startswith(("file:", "data:"))]
        assert not seen.said
