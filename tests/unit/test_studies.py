"""Studies: found by their folders, set by described and checked settings, and honest about data and controls."""

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

import builders
import trained
from mediant.core.errors import MediantError, RunError, TaskError, UnknownName
from mediant.runs import Manifest
from mediant.studies.activation_patching import task as data_of
from mediant.studies.activation_patching.config import Config
from mediant.studies.catalogue import studies, study
from mediant.studies.config import StudyConfig
from mediant.studies.provenance import provenance, versions
from mediant.studies.runner import Order, carry_out
from mediant.subject import Subject, wrap
from mediant.subject.catalogue import models
from mediant.tasks import catalogue as task_catalogue
from mediant.tasks import foreign

CARDS = list(studies().values())
PRESETS = [(card, preset) for card in CARDS for preset in card.presets]


# The catalogue and its settings.


def test_every_folder_with_a_config_is_a_study_and_has_all_its_parts():
    folders = [f.name for f in files("mediant.studies").iterdir() if f.is_dir() and (f / "config.py").is_file()]
    assert sorted(card.module.rpartition(".")[2] for card in CARDS) == sorted(folders)
    for card in CARDS:
        assert card.module == f"mediant.studies.{card.name.replace('-', '_')}"
        assert studies()[card.name] is study(card.name) is card
        assert callable(import_module(f"{card.module}.study").run)
        assert callable(import_module(f"{card.module}.figures").page)
        assert {"bundled", "smoke"} <= set(card.presets)


def test_an_unknown_study_or_preset_is_answered_by_the_nearest():
    with pytest.raises(UnknownName, match="unknown study 'activation_patching'; did you mean 'activation-patching'"):
        study("activation_patching")
    with pytest.raises(UnknownName, match="unknown preset 'smokey'; did you mean 'smoke'"):
        CARDS[0].configure("smokey", {})


@pytest.mark.parametrize(("card", "preset"), PRESETS, ids=[f"{card.name} {preset}" for card, preset in PRESETS])
def test_every_preset_is_valid_and_sets_what_it_says(card, preset):
    config = card.configure(preset, {})
    assert isinstance(config, StudyConfig)
    for name, value in card.presets[preset].items():
        assert to_jsonable_python(getattr(config, name)) == value
    others = set(type(config).model_fields) - set(card.presets[preset])
    assert [name for name in others if getattr(config, name) != type(config).model_fields[name].default] == []


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_setting_is_described_in_a_sentence(card):
    for name, info in card.config.model_fields.items():
        assert info.description, name
        assert info.description[0].isupper(), name
        assert info.description.endswith("."), name
        assert len(info.description) > 20, name


def test_every_preset_runs_the_study_it_is_for_on_a_task_that_exists():
    for card, preset in PRESETS:
        config = card.configure(preset, {})
        if card.name == "gaze-heads":
            assert config.data == "drawn" or config.data in foreign.SETS
            assert config.regions == "drawn" or config.regions in foreign.SETS
        elif card.name == "reference-binding":
            names = [config.judge, *([config.planted] if config.planted else []), *([config.model] if preset != "paper" else [])]
            assert set(names) <= set(models())
            assert config.tasks is None or config.tasks in foreign.SETS
        else:
            assert config.task in task_catalogue.TASKS or (card.name == "mediation" and config.task is None)


def test_settings_cannot_be_changed_after_they_are_checked():
    with pytest.raises(ValidationError, match="frozen"):
        CARDS[0].configure("smoke", {}).n = 9


WRONG = [
    ({"n_discvery": 3}, "unknown option 'n_discvery' of activation-patching; did you mean 'n_discovery'?"),
    ({"xyzzy": 3}, "unknown option 'xyzzy' of activation-patching; options: model, seed, device, dtype, task, metric, n, "),
    ({"n": 7}, "n: Input should be greater than or equal to 8, got 7 (Pairs on which the chosen heads are confirmed"),
    ({"n": "many", "seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
    ({"rank_by": "size"}, "rank_by: Input should be 'absolute' or 'most_negative', got 'size'"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=str)
def test_a_wrong_setting_is_explained(changed: dict[str, object], message: str):
    with pytest.raises(MediantError) as raised:
        study("activation-patching").configure("smoke", changed)
    assert message in str(raised.value)


def test_two_wrong_settings_are_both_named():
    with pytest.raises(MediantError, match=r"seed: .*got -1.*; n: .*got 'many'"):
        study("activation-patching").configure("smoke", {"n": "many", "seed": -1})


# Where a run goes.


def test_a_run_goes_into_a_folder_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    card = study("activation-patching")
    order = Order(card, preset="smoke", changed={"model": "some/where/gpt2/", "seed": 4})
    assert order.folder == Path("runs/activation-patching/smoke-gpt2-seed4")
    order.folder.mkdir(parents=True)
    assert order.folder == Path("runs/activation-patching/smoke-gpt2-seed4-2")
    assert Order(card, "smoke", order.changed, resume=True).folder == Path("runs/activation-patching/smoke-gpt2-seed4")
    assert Order(card, out=Path("there")).folder == Path("there")


def test_a_taken_folder_is_refused_before_a_model_is_loaded(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        carry_out(Order(study("activation-patching"), changed={"model": "no-such-model"}, out=tmp_path))


def test_provenance_depends_on_nothing_but_the_order_the_model_and_the_versions():
    manifest = Manifest(study="s", preset="p", config={"n": 8}, changed={"n": 8}, model_fingerprint="f" * 64, versions=versions())
    assert provenance(manifest, builders.subject("gpt2")) == {
        "model": "tiny-gpt2", "model_sha256": "f" * 64, "family": "gpt2", "dtype": "float32", "device": "cpu", "preset": "p",
        "changed": {"n": 8}, "config": {"n": 8}, "versions": versions(),
    }  # fmt: skip
    assert versions()["torch"] == torch.__version__


# The data.


@pytest.fixture(scope="module")
def reader() -> Subject:
    """A model that has the words of the pairs file; what it says does not matter here."""
    return wrap(trained.untrained().eval(), trained.tokenizer(), name="untrained")


def split(reader: Subject, path: Path, lines: Sequence[dict], **settings: object) -> data_of.Data:
    trained.write_lines(path / "pairs.jsonl", [{**line, "id": f"{i:03d}"} for i, line in enumerate(lines)])
    return data_of.load(Config(task=str(path / "pairs.jsonl"), **{"n": 20, "n_discovery": 12, "n_map": 4, **settings}), reader)


def test_a_users_pairs_are_split_into_disjoint_sets_that_together_are_all(reader: Subject, tmp_path: Path):
    data = split(reader, tmp_path, trained.pair_lines(48))
    ids = [{pair.id for pair in part} for part in (data.discovery, data.confirm, data.heldout)]
    assert [len(part) for part in ids] == [12, 20, 16]
    assert len(set.union(*ids)) == 48


def test_the_held_out_template_is_seen_nowhere_else(reader: Subject, tmp_path: Path):
    for seed in range(6):
        data = split(reader, tmp_path, trained.pair_lines(48), seed=seed)
        (held,) = {pair.template for pair in data.heldout}
        assert {pair.template for pair in (*data.discovery, *data.confirm, *data.shown)} == set(trained.TEMPLATES) - {held}


def test_every_template_can_be_the_one_held_out_and_the_seed_decides(reader: Subject, tmp_path: Path):
    data = [split(reader, tmp_path, trained.pair_lines(48), seed=seed) for seed in [*range(8), 0]]
    assert {d.heldout[0].template for d in data} == set(trained.TEMPLATES)
    assert data[0] == data[-1]
    assert {pair.id for pair in data[0].discovery} != {pair.id for pair in data[1].discovery}


def test_no_set_is_larger_than_asked_and_ranking_takes_at_most_half(reader: Subject, tmp_path: Path):
    lines = trained.pair_lines(48)
    few = split(reader, tmp_path, lines, n=8, n_discovery=4, n_map=2)
    assert [len(part) for part in (few.discovery, few.confirm, few.heldout, few.shown)] == [4, 8, 8, 2]
    many = split(reader, tmp_path, lines, n=500, n_discovery=400)
    assert [len(part) for part in (many.discovery, many.confirm, many.heldout)] == [16, 16, 16]


def test_one_template_is_never_held_out(reader: Subject, tmp_path: Path):
    data = split(reader, tmp_path, trained.pair_lines(48)[::3])
    assert (len(data.discovery), len(data.confirm), data.heldout) == (8, 8, ())
    assert data.heldout_reason == "the file names fewer than two templates, so none could be held out"


def test_pairs_of_the_map_line_up_token_by_token(reader: Subject, tmp_path: Path):
    data = split(reader, tmp_path, trained.pair_lines(48), n_map=40)
    tokens = [reader.tokenize(pair.clean) for pair in data.shown]
    assert len({(pair.template, len(t.ids), str(t.spans)) for pair, t in zip(data.shown, tokens, strict=True)}) == 1
    counts = Counter(pair.template for pair in (*data.discovery, *data.confirm))
    assert len(data.shown) == max(counts.values())


def test_too_few_pairs_are_refused(reader: Subject, tmp_path: Path):
    with pytest.raises(TaskError, match="holds 5 pairs; at least 6 are needed"):
        split(reader, tmp_path, trained.pair_lines(5))
    lines = trained.pair_lines(18)
    with pytest.raises(TaskError, match=r"only 1 pairs are left beside the held-out template \['today'\]"):
        split(reader, tmp_path, [lines[0], *lines[1::3]])


def test_a_users_metric_replaces_the_tasks_own(reader: Subject, tmp_path: Path):
    assert split(reader, tmp_path, trained.pair_lines(48)).metric == "logprob_diff"
    assert split(reader, tmp_path, trained.pair_lines(48), metric="prob_diff").metric == "prob_diff"


GENERATED = ["ioi", "agreement"]


@pytest.fixture(scope="module")
def anything() -> Subject:
    """A model whose tokenizer takes every word for one token, so that generated tasks find their words."""
    lm = builders.subject()
    return wrap(lm.model, lm.tokenizer, name="anything")


@pytest.mark.parametrize("task", GENERATED)
def test_generated_pairs_are_split_disjointly_and_frames_are_held_out(anything: Subject, task: str):
    data = data_of.load(Config(task=task, n=30, n_discovery=10, n_map=4), anything)
    texts = [{pair.clean.text for pair in part} for part in (data.discovery, data.confirm, data.heldout)]
    assert [len(part) for part in texts] == [10, 30, 30]
    assert len(set.union(*texts)) == 70
    main, held = ({pair.template for pair in part} for part in ((*data.discovery, *data.confirm), data.heldout))
    assert main.isdisjoint(held)
    assert len({pair.template for pair in data.shown}) == 1
    assert 1 <= len(data.shown) <= 4
