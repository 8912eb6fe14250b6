"""Directions: unit length with the original beside it, in files that plain safetensors reads."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from mediant.core import Direction, Site
from mediant.core.errors import EditError, RunError

GOOD = {"site": "resid_post.3", "norm": 5.0, "name": "polite", "meta": {"method": "means"}}
UNIT = np.array([0.6, 0.8], np.float32)
vectors = arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e3, 1e3)).filter(lambda v: np.abs(v).max() > 1e-3)


def polite() -> Direction:
    return Direction.from_vector(np.array([3.0, 4.0]), Site("resid_post", 3), name="polite", meta={"method": "means"})


@given(vectors)
def test_a_direction_has_length_one_and_keeps_the_length_it_had(vector):
    found = Direction.from_vector(vector, Site("resid_post", 3))
    assert found.vector.dtype == np.float32
    assert found.vector.shape == vector.shape
    assert abs(np.sqrt((found.vector.astype(np.float64) ** 2).sum()) - 1) < 1e-5
    assert abs(found.norm - np.sqrt((vector**2).sum())) < 1e-5 * found.norm
    assert np.allclose(found.vector * found.norm, vector, rtol=1e-5, atol=1e-4 * found.norm)


def test_a_direction_may_be_given_as_a_list_and_remembers_what_it_was_told():
    found = Direction.from_vector([0, -2, 0], Site("head_z", 1, 2), name="n", meta={"task": "ioi"})
    assert (found.vector.tolist(), found.norm, found.name, found.meta) == ([0.0, -1.0, 0.0], 2.0, "n", {"task": "ioi"})
    assert type(found.norm) is float
    assert Direction.from_vector([1.0], Site("embed")).meta == {}


def test_a_direction_does_not_share_what_it_was_made_from():
    vector, meta = np.array([1.0, 0.0], dtype=np.float32), {"a": "b"}
    found = Direction.from_vector(vector, Site("embed"), meta=meta)
    vector[:], meta["a"] = 7, "c"
    assert (found.vector.tolist(), found.meta) == ([1.0, 0.0], {"a": "b"})


NO_DIRECTION = {
    "zero": [0.0, 0.0], "nan": [np.nan, 1.0], "inf": [np.inf, 1.0], "table": [[1.0, 2.0]], "cube": [[[1.0]]],
    "none": [], "number": 3.0,
}  # fmt: skip


@pytest.mark.parametrize("vector", NO_DIRECTION.values(), ids=NO_DIRECTION)
def test_a_vector_without_a_direction_is_refused(vector):
    with pytest.raises(EditError, match="a direction needs a finite non-zero vector, got shape"):
        Direction.from_vector(vector, Site("resid_post", 3))


def same(a: Direction, b: Direction) -> bool:
    return np.array_equal(a.vector, b.vector) and (a.site, a.norm, a.name, a.meta) == (b.site, b.norm, b.name, b.meta)


@settings(max_examples=30)
@given(vector=vectors, name=st.text(max_size=6), meta=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
def test_a_saved_direction_is_read_back_to_the_last_bit(tmp_path_factory, vector, name, meta):
    path = tmp_path_factory.mktemp("directions") / "d.safetensors"
    found = Direction.from_vector(vector, Site("head_z", 4, 5), name=name, meta=meta)
    found.save(path)
    assert same(Direction.load(path), found)
    assert same(Direction.load(str(path)), found)


@pytest.mark.parametrize("cut", [slice(None, None, 2), slice(None, None, -1)])
def test_a_direction_made_from_every_other_or_reversed_entries_is_saved_right(tmp_path, cut):
    vector = np.arange(1, 9, dtype=np.float32)[cut]
    Direction.from_vector(vector, Site("embed")).save(tmp_path / "d")
    assert np.allclose(Direction.load(tmp_path / "d").vector, vector / np.sqrt((vector**2).sum()))


def test_plain_safetensors_reads_the_vector_and_what_it_is(tmp_path):
    path = tmp_path / "d.safetensors"
    polite().save(path)
    tensors = load_file(path)
    assert list(tensors) == ["vector"]
    assert torch.equal(tensors["vector"], torch.tensor([0.6, 0.8]))
    with safe_open(path, framework="numpy") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == {"direction": GOOD}


def test_the_file_is_safetensors_by_its_bytes(tmp_path):
    polite().save(tmp_path / "d")
    data = (tmp_path / "d").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert header["vector"] == {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert np.frombuffer(data[8 + size :], np.float32).tolist() == np.array([0.6, 0.8], np.float32).tolist()


def test_the_same_direction_gives_the_same_bytes(tmp_path):
    for i in range(12):
        polite().save(tmp_path / str(i))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_order_in_which_notes_were_made_does_not_change_the_file(tmp_path):
    for name, meta in (("a", {"n": "3", "method": "means"}), ("b", {"method": "means", "n": "3"})):
        Direction.from_vector([3.0, 4.0], Site("resid_post", 3), meta=meta).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def refused(path) -> None:
    with pytest.raises(RunError, match="is not a saved direction"):
        Direction.load(path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    polite().save(tmp_path / "d")
    data = (tmp_path / "d").read_bytes()
    for length in (0, 4, 8, 20, len(data) - 9, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        refused(tmp_path / "cut")


def written(path, fields: object, tensors: dict[str, np.ndarray] | None = None) -> None:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    save_file({"vector": UNIT} if tensors is None else tensors, path, {"direction": text})


def test_a_file_written_by_hand_is_read(tmp_path):
    written(tmp_path / "d", GOOD)
    assert same(Direction.load(tmp_path / "d"), Direction(UNIT, Site("resid_post", 3), 5.0, "polite", {"method": "means"}))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a direction at all, only text", encoding="utf-8")
    written(tmp_path / "tensor", GOOD, {"other": UNIT})
    save_file({"vector": UNIT}, tmp_path / "bare")
    save_file({"vector": UNIT}, tmp_path / "foreign", {"format": "pt"})
    for name in ("text", "tensor", "bare", "foreign", "missing"):
        refused(tmp_path / name)
    refused(tmp_path)


@pytest.mark.parametrize("key", GOOD)
def test_a_file_without_one_of_its_fields_is_refused(tmp_path, key):
    written(tmp_path / "d", {k: v for k, v in GOOD.items() if k != key})
    refused(tmp_path / "d")


CHANGES = [
    {"norm": "long"}, {"norm": None}, {"norm": 0.0}, {"norm": -1.0}, {"norm": math.nan}, {"norm": math.inf}, {"meta": "text"},
    {"meta": 3}, {"site": "resid_pots.3"}, {"site": "resid_post.x"}, {"site": 3},
]  # fmt: skip


@pytest.mark.parametrize("fields", [*({**GOOD, **change} for change in CHANGES), "{", "[]", "null", "3"], ids=str)
def test_a_file_with_a_field_that_cannot_be_read_is_refused(tmp_path, fields):
    written(tmp_path / "d", fields)
    refused(tmp_path / "d")


@pytest.mark.parametrize(
    "vector", [UNIT[None], 0 * UNIT, 5 * UNIT, np.float32(0.99) * UNIT, UNIT * np.nan, UNIT[:0], UNIT.astype(np.float64)], ids=str
)
def test_a_file_whose_vector_is_no_unit_vector_is_refused(tmp_path, vector):
    written(tmp_path / "d", GOOD, {"vector": np.ascontiguousarray(vector)})
    refused(tmp_path / "d")
