import pytest

from mediant.measures.judges import described, exactly, fact_share, repetitive, same_text

CAPTIONS = [
    "Fox runs with a red ball at the beach.", "Frog runs with a blue kite at the beach.", "Owl sits with a red box on the moon.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "panel"),
    [
        (CAPTIONS[0], 0), (CAPTIONS[2], 2), ("3. Frog runs with a blue kite", 1), ("Panel 1: an OWL", 2), ("the moon", 2),
        ("something with a", None), ("runs at the beach", None), ("fox and frog", None), ("", None), ("2 3 1", None),
    ],
)  # fmt: skip
def test_the_nearest_caption_by_rare_words(text, panel):
    assert described(CAPTIONS, text) == panel


def test_a_word_that_all_captions_share_tells_nothing():
    assert described(["a fox", "a frog"], "a") is None


def test_rare_words_outweigh_common_ones():
    captions = ["red ball fox", "red ball frog", "red box owl"]
    # "red" is in all, "ball" in two: one rare word wins against it.
    assert described(captions, "red ball owl") == 2


def test_same_texts_but_for_labels_case_and_a_few_words():
    assert same_text("Panel two: Fox runs.", "fox runs")
    assert same_text("1. one two three four five six seven", "one two three four five six seven eight")
    assert not same_text("one two three four five", "one two three four six")
    assert same_text("", "!")


def test_exactness_minds_words_and_their_order():
    assert exactly("1. fox runs with a red ball at the beach", CAPTIONS[0])
    assert not exactly("Fox runs with a red ball", CAPTIONS[0])
    assert not exactly("runs Fox with a red ball at the beach", CAPTIONS[0])


def test_facts_are_whole_words():
    assert fact_share("a foxy ball", ("fox", "ball")) == 0.5
    assert fact_share("anything", ()) == 0.0


def test_junk():
    assert repetitive("")
    assert repetitive("...")
    assert repetitive("yellow " * 9)
    assert not repetitive(CAPTIONS[0])
    assert not repetitive("no no no")
