"""Where the study's spans come from: named, cut by saliency, or written by a model on loopback that does well, or badly."""

import json
import re
from pathlib import Path

import pytest

import trained
from chat_server import model_reply, serving
from conftest import Mediant
from mediant.subject import load

SMALL = ["--preset", "smoke", "--n", "18", "--n-discovery", "9", "--batch-size", "9", "--n-sizes", "4", "--device", "cpu"]
LLM = ["--spans", "llm", "--schema-rounds", "1", "--schema-tokens", "64"]
RUN = ("run", "positional-circuits")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def able(prompt: str) -> str:
    """Does what it is told, but never divides a prompt that begins with a dog."""
    if "Tokens:" not in prompt:
        return json.dumps({"opening": "all but the last", "last": "the last <token>"})
    tokens = json.loads(re.search(r"Tokens: (\[.*\])", prompt).group(1))
    return "no" if "dog" in tokens[1] else json.dumps({"opening": tokens[:-1], "last": tokens[-1:]})


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_a_schema_that_a_model_wrote_is_used_and_what_it_failed_on_is_left_out(mediant: Mediant, agreement: Path, tmp_path: Path):
    lines = trained.pair_lines(64)
    failing = [line for line in lines if str(line["clean"]).split()[1].startswith("dog")]
    others = [line for line in lines if line not in failing]
    file = trained.write_lines(tmp_path / "pairs.jsonl", [*others[:26], *failing[:1]])
    with serving(able) as url:
        called = mediant(*RUN, "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL, *LLM, "--endpoint", url)
    assert called.code == 0, called.err
    found = result_of(tmp_path / "run")
    assert list(found["provenance"]["spans"].values()) == [["opening", "last"]]
    assert found["measures"]["schema_valid"]["value"] == pytest.approx(26 / 27)
    assert found["measures"]["schema_valid"]["n"] == 27
    assert found["measures"]["accuracy"]["n"] in (17, 18)
    assert any("96% of the prompts" in limit for limit in found["limits"])
    page = (tmp_path / "run" / "index.html").read_text(encoding="utf-8")
    assert "the last &lt;token&gt;" in page
    assert "the last <token>" not in page


def test_a_real_model_that_cannot_do_it_is_shown_to_fail_and_the_named_spans_are_used(
    mediant: Mediant, agreement: Path, tmp_path: Path
):
    file = trained.write_lines(tmp_path / "pairs.jsonl", trained.pair_lines(27))
    with serving(model_reply(load(str(agreement), device="cpu"), longest=16, words=20)) as url:
        called = mediant(*RUN, "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL, *LLM, "--endpoint", url)
    assert called.code == 0, called.err
    found = result_of(tmp_path / "run")
    assert found["measures"]["schema_valid"]["value"] == 0.0
    assert found["measures"]["schema_valid"]["ci95"][1] < 0.2
    assert any("named spans were used instead" in limit for limit in found["limits"])
    assert "subject" in next(iter(found["provenance"]["spans"].values()))


def test_prompts_without_named_spans_are_cut_by_saliency(mediant: Mediant, agreement: Path, tmp_path: Path):
    lines = [{k: v for k, v in line.items() if k != "spans"} for line in trained.pair_lines(80)]
    alike = [line for line in lines if line["template"] == lines[0]["template"]]
    file = trained.write_lines(tmp_path / "bare.jsonl", alike[:27])
    called = mediant(*RUN, "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL, "--spans", "saliency")
    assert called.code == 0, called.err
    found = result_of(tmp_path / "run")
    assert next(iter(found["provenance"]["spans"].values()))[0] == "token 0"
    assert "schema_valid" not in found["measures"]


def test_a_language_model_without_an_endpoint_and_one_that_is_not_there_are_refused(
    mediant: Mediant, agreement: Path, tmp_path: Path
):
    file = trained.write_lines(tmp_path / "pairs.jsonl", trained.pair_lines(27))
    common = [*RUN, "--model", agreement, "--task", file, "--out", tmp_path / "run", *SMALL]
    mediant(*common, "--spans", "llm").refuses("--endpoint")
    mediant(*common, "--endpoint", "http://127.0.0.1:9/v1").refuses("--spans llm")
    mediant(*common, "--spans", "letters").refuses("named")
