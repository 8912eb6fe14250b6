"""What the user is told: the nearest valid names, and one base class for everything the package refuses."""

import subprocess
import sys

import pytest

import mediant.core
from mediant.core import errors
from mediant.core.errors import MediantError, nearest, unknown

DELIBERATE = [
    "UnknownName", "OutOfRange", "SpanError", "TaskError", "TaskNotDone", "SubjectError", "UnsafeWeights", "EditError",
    "EditNeverFired", "RunError", "EndpointError",
]  # fmt: skip


@pytest.mark.parametrize("name", DELIBERATE)
def test_every_deliberate_error_is_caught_as_one_kind_and_is_its_message(name):
    kind = getattr(errors, name)
    with pytest.raises(MediantError) as caught:
        raise kind("what to do")
    assert str(caught.value) == "what to do"


def test_narrower_errors_are_also_the_wider_kind():
    assert issubclass(errors.UnsafeWeights, errors.SubjectError)
    assert issubclass(errors.EditNeverFired, errors.EditError)
    assert not issubclass(errors.OutOfRange, errors.UnknownName)


def test_the_closest_names_come_first_and_at_most_three():
    assert nearest("resid_pst", ["zzz", "resid_pre", "resid_post", "resid_mid", "resid_past"]) == [
        "resid_post",
        "resid_past",
        "resid_pre",
    ]
    assert nearest("resid_pst", ["resid_pre", "resid_post"], n=1) == ["resid_post"]
    assert nearest("qqq", ["resid_pre"]) == []


def test_choices_may_be_any_iterable_even_one_that_is_used_up():
    assert str(unknown("model", "abd", (c for c in ["abc", "xyz"]))) == "unknown model 'abd'; did you mean 'abc'?"
    assert str(unknown("model", "qqq", (c for c in ["xyz", "abc"]))) == "unknown model 'qqq'; valid names: abc, xyz"


def test_without_a_near_name_all_are_listed_in_order():
    assert str(unknown("site", "qqq", ["b", "a"])) == "unknown site 'qqq'; valid names: a, b"


def test_without_any_name_the_user_is_told_so():
    assert str(unknown("span", "S2", [])) == "unknown span 'S2'; there is no span to choose from"


def test_a_note_ends_the_message_and_its_absence_leaves_no_blank():
    assert str(unknown("span", "S3", ["S2"], note="(prompt 4)")) == "unknown span 'S3'; did you mean 'S2'? (prompt 4)"
    assert str(unknown("span", "S3", ["S2"])) == "unknown span 'S3'; did you mean 'S2'?"


def test_several_near_names_are_joined_by_or():
    assert str(unknown("site", "resid_pst", ["resid_pre", "resid_post"])).endswith("did you mean 'resid_post' or 'resid_pre'?")


def test_every_public_name_of_the_core_can_be_imported():
    for name in mediant.core.__all__:
        assert getattr(mediant.core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Sites'"):
        mediant.core.Sites  # noqa: B018


def test_importing_the_core_loads_no_heavy_library():
    code = "import sys, mediant.core.site, mediant.core.errors; print({'numpy', 'torch', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
