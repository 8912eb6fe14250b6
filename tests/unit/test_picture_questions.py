"""Questions to a model that sees: its word is taken, turned round where the paper turns it, and asked for again when unusable."""

import numpy as np
import pytest

from mediant.core.errors import EndpointError, UnknownName
from mediant.measures.picture_questions import Answer, PictureQuestions, read
from mediant.subject.endpoint import ScriptedEndpoint

PICTURE = np.full((32, 32, 3), 90, np.uint8)
YES, NO = '{"pass": 1, "reason": "it is"}', '{"pass": 0, "reason": "it is not"}'


@pytest.mark.parametrize(
    ("kind", "name", "n", "yes_counts"),
    [("lens", "colour", 3, True), ("lens", "style", 3, True), ("lens", "identity", 3, False), ("cut to text", "style", 3, True),
     ("cut to picture", "colour", 3, False), ("swap", "identity", 4, True)],
)  # fmt: skip
def test_a_pass_always_means_that_the_intervention_did_what_is_counted(kind: str, name: str, n: int, yes_counts: bool):
    for reply, said in ((YES, True), (NO, False)):
        answer = PictureQuestions(ScriptedEndpoint([reply])).ask(kind, name, [PICTURE] * n)
        assert answer.passed is (said == yes_counts)


def test_pictures_are_sent_in_order_with_their_labels():
    endpoint = ScriptedEndpoint([YES])
    pictures = [np.full((16, 16, 3), shade, np.uint8) for shade in (10, 120, 240)]
    PictureQuestions(endpoint).ask("cut to text", "style", pictures)
    (message,) = endpoint.calls[0].messages
    assert len(message.images) == 3
    assert all(image.startswith(b"\xff\xd8") for image in message.images)
    assert len(set(message.images)) == 3
    assert "Image 3 is the same picture after an intervention. Image 2 was to take the drawing style" in message.content


def test_an_unusable_reply_is_asked_for_once_more_and_then_there_is_no_answer():
    assert PictureQuestions(ScriptedEndpoint(["well", YES])).ask("lens", "style", [PICTURE] * 3).passed is True
    found = PictureQuestions(ScriptedEndpoint(["well", '{"pass": "maybe"}'])).ask("lens", "style", [PICTURE] * 3)
    assert found == Answer(None, "the judge gave no usable answer")


@pytest.mark.parametrize(
    ("reply", "passed"),
    [('{"pass": 1}', True), ('Sure: {"pass": 0, "reason": "x"} ok', False), ("{bad} " + '{"pass": true}', True), ("none", None),
     ('{"pass": 2}', None), ('{"passed": 1}', None)],
)  # fmt: skip
def test_replies_are_read(reply: str, passed: bool | None):
    found = read(reply)
    assert (found.passed if found else None) is passed


def test_wrong_calls_are_told():
    judge = PictureQuestions(ScriptedEndpoint([]))
    with pytest.raises(EndpointError, match="is asked about 4 pictures"):
        judge.ask("swap", "style", [PICTURE] * 3)
    with pytest.raises(UnknownName, match="did you mean 'colour'"):
        judge.ask("lens", "color", [PICTURE] * 3)
