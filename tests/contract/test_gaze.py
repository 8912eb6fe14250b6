"""Turning heads, in every family with eyes: nothing without heads, the wanted mass with them, nothing afterwards."""

import sys

import pytest
import torch

from eyes import BUILDERS, noise, vision_subject
from mediant.core import AttentionEdge, Site, Span
from mediant.core.errors import EditError, EditNeverFired, OutOfRange, RegionError, UnknownName
from mediant.interventions import run
from mediant.interventions.attention import Rows, attending, cut
from mediant.interventions.attention_function import replacing_attention
from mediant.interventions.look import Live, Look, Schedule
from mediant.interventions.looking import looking
from mediant.subject import Batch
from mediant.subject.cache import cache_among
from mediant.subject.vision import VisionSubject

pytestmark = pytest.mark.usefixtures("no_gradients")
families = pytest.mark.parametrize("family", list(BUILDERS))
implementations = pytest.mark.parametrize("attention", ["sdpa", "eager"])
HEADS = (Site("head_z", 0, 1), Site("head_z", 1, 0), Site("head_z", 1, 3))
QUESTION = "what is here ?"


def two_rows(vlm: VisionSubject) -> Batch:
    """Two prompts of unequal length with different targets."""
    images = [noise(48, 96), noise(48, 60, 1)]
    questions = [QUESTION, "what happens in the third panel ?"]
    boxes = [((0, 0, 40, 48), (40, 0, 96, 48)), ((15, 0, 60, 20), (0, 20, 60, 48))]
    if vlm.name.startswith("tiny-llava"):
        boxes[0] = ((24, 0, 48, 48), (48, 0, 72, 48))
    return vlm.look(images, questions, regions=[{"one": a, "two": b} for a, b in boxes])


def eager_weights(vlm: VisionSubject, batch: Batch) -> list[torch.Tensor]:
    """Attention of the untouched model by the library's own plain implementation, per layer."""
    before = vlm.text_config._attn_implementation
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        return list(vlm.model(**vlm.feed(batch), output_attentions=True, use_cache=False).attentions)
    finally:
        vlm.model.set_attn_implementation({"text_config": before})


def mass(weights: torch.Tensor, batch: Batch, row: int, span: str) -> torch.Tensor:
    """Share of attention per head from the last column to a span."""
    return weights[row, :, -1, batch.columns(row, Span(span))].sum(-1)


def n_hooks(vlm: VisionSubject) -> int:
    """All hooks; the library lays some of its own."""
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in vlm.model.modules())


@families
@implementations
def test_a_function_in_between_changes_nothing(family, attention):
    vlm = vision_subject(family, attention=attention)
    batch = two_rows(vlm)
    clean = run(vlm, batch).last
    with looking(vlm, Look((), "one")):
        assert torch.equal(run(vlm, batch).last, clean)
    with replacing_attention(vlm, lambda plain, *args, **kwargs: plain(*args, **kwargs)):
        between = run(vlm, batch).last
    assert (between - clean).abs().max() <= 2e-7 * clean.abs().max()


@families
@implementations
def test_steered_heads_look_at_the_target_and_the_others_as_before(family, attention):
    vlm = vision_subject(family, attention=attention)
    batch = two_rows(vlm)
    plain = eager_weights(vlm, batch)
    # The image lies outside the sliding window of Gemma's first layer.
    for layer in (1,) if family == "gemma3" else (0, 1):
        heads = tuple(site for site in HEADS if site.layer == layer)
        with looking(vlm, Look(heads, "one")) as gaze, attending(vlm, rows=[Rows(layer, "last")]) as seen:
            run(vlm, batch)
        mine = [site.head for site in heads]
        weights = seen.rows[0].weights
        for row in range(2):
            shares = weights[row][:, batch.columns(row, Span("one"))].sum(-1)
            assert shares[mine].min() > 1 - 1e-6
            others = [h for h in range(4) if h not in mine]
            assert torch.allclose(weights[row, others], plain[layer][row, others, -1], atol=1e-6)
        told = gaze.seen[-1]
        assert (told.layer, told.step, told.turn) == (layer, -1, (0, 0))
        assert torch.allclose(told.after, torch.ones(2, len(mine)), atol=1e-6)
        expected = torch.stack([mass(plain[layer], batch, row, "one")[mine] for row in range(2)])
        assert torch.allclose(told.before, expected, atol=1e-5)


@families
def test_a_wanted_share_of_attention_is_reached(family):
    vlm = vision_subject(family)
    batch = two_rows(vlm)
    for wanted in (0.05, 0.4, 0.97):
        with looking(vlm, Look(HEADS, "two", mass=wanted)) as gaze:
            vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
        whole = [one for one in gaze.seen if one.reach == 1.0 and one.layer == 1]
        assert {one.step for one in whole} == {-1, 0, 1, 2}
        for one in whole:
            assert (one.after - wanted).abs().max() < 1e-3, (one.step, one.after)


@families
def test_the_target_changes_at_exactly_the_scheduled_step(family):
    vlm = vision_subject(family)
    batch = two_rows(vlm)
    plan = Schedule(("two", "one"), starts=(1, 3))
    with looking(vlm, Look(HEADS[1:], plan, when="decode")) as gaze, attending(vlm, rows=[Rows(1, "generated")]) as seen:
        vlm.generate(batch, max_new_tokens=6, stop_at_eos=False)
    weights, cols = seen.rows[0].weights, torch.cat(seen.rows[0].cols)
    rows = torch.cat(seen.rows[0].rows)
    for at in range(len(weights)):
        step, row = int(cols[at]) - batch.n_cols, int(rows[at])
        name = None if step < 1 else "two" if step < 3 else "one"
        for target in ("one", "two"):
            share = weights[at, [0, 3]][:, batch.columns(row, Span(target))].sum(-1)
            assert bool((share > 1 - 1e-6).all()) == (target == name), (step, target, share)
    assert [f.unreached_steps for f in gaze.firings()] == [(), ()]
    assert [f.tokens for f in gaze.firings()] == [4, 4]
    assert sorted({one.step for one in gaze.seen}) == [1, 2, 3, 4]


@families
def test_steering_says_the_same_with_and_without_a_cache(family):
    vlm = vision_subject(family)
    batch = two_rows(vlm)
    look = Look(HEADS, "one", beta=3.0)
    with looking(vlm, look):
        cached = vlm.generate(batch, max_new_tokens=5, stop_at_eos=False)
    with looking(vlm, look):
        again = vlm.generate(batch, max_new_tokens=5, stop_at_eos=False, use_cache=False)
    assert cached.tolist() == again.tolist()
    with pytest.raises(EditError, match="needs a key/value cache"), looking(vlm, Look(HEADS, Schedule(("one", "two"), (0, 2)))):
        vlm.generate(batch, max_new_tokens=5, stop_at_eos=False, use_cache=False)


@families
def test_nothing_remains_also_after_an_error(family):
    vlm = vision_subject(family)
    batch = two_rows(vlm)
    clean = vlm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    before, hooks = vlm.text_config._attn_implementation, n_hooks(vlm)
    with pytest.raises(UnknownName), looking(vlm, Look(HEADS, Schedule(("one", "nowhere"), (0, 1)))):
        vlm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    assert vlm.text_config._attn_implementation == before
    assert not vlm.in_force
    assert not vlm.attending
    assert n_hooks(vlm) == hooks
    assert torch.equal(vlm.generate(batch, max_new_tokens=3, stop_at_eos=False), clean)


def test_a_head_in_a_long_prompt_is_steered_in_every_row(monkeypatch):
    vlm = vision_subject()
    batch = two_rows(vlm)
    with looking(vlm, Look(HEADS, "one", beta=2.0)):
        at_once = run(vlm, batch).last
    monkeypatch.setattr(sys.modules[Look.__module__.replace("look", "looking")], "_NUMBERS", 500)
    with looking(vlm, Look(HEADS, "one", beta=2.0)):
        in_blocks = run(vlm, batch).last
    assert torch.allclose(at_once, in_blocks, atol=1e-6)


def test_a_bias_by_hand_gives_the_same():
    from mediant.interventions.attention import bias

    vlm = vision_subject()
    batch = two_rows(vlm)
    rest = [{"rest": batch.images[row].others(batch.columns(row, Span("one")))} for row in range(2)]
    batch = batch.with_spans(rest)
    edges = [
        bias(AttentionEdge(s.layer, s.head, "prompt", name), sign * 2.5)
        for s in HEADS
        for name, sign in (("one", 1), ("rest", -1))
    ]
    with attending(vlm, edges):
        by_hand = run(vlm, batch).last
    with looking(vlm, Look(HEADS, "one", beta=2.5)):
        assert torch.allclose(run(vlm, batch).last, by_hand, atol=1e-5)


@pytest.mark.parametrize("mode", ["boost", "boost_suppress", "suppress_image", "suppress_all", "max_suppress_all"])
def test_modes_suppress_what_they_say(mode):
    vlm = vision_subject()
    batch = two_rows(vlm)
    with looking(vlm, Look(HEADS[1:2], "one", mode=mode, beta=50.0)), attending(vlm, rows=[Rows(1, "generated", (0,))]) as seen:
        vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    observed = seen.rows[0]
    weights, rows, cols = observed.weights[:, 0], torch.cat(observed.rows), torch.cat(observed.cols)
    for at in range(len(weights)):
        row = int(rows[at])
        target = batch.columns(row, Span("one"))
        other = [c for c in batch.columns(row, Span("image")) if c not in target]
        text = [c for c in batch.columns(row, Span("prompt")) if c not in (*target, *other)]
        said = list(range(batch.n_cols, int(cols[at]) + 1))
        shares = {
            name: float(weights[at, where].sum())
            for name, where in (("target", target), ("other", other), ("text", text), ("said", said))
        }
        gone = {
            "boost": {"other", "text", "said"}, "boost_suppress": {"other", "text", "said"}, "suppress_image": {"other"},
            "suppress_all": {"other", "text"}, "max_suppress_all": {"other", "text", "said"},
        }[mode]  # fmt: skip
        for name, share in shares.items():
            assert (share < 1e-6) == (name in gone), (mode, shares)


def test_a_sentence_that_ends_moves_the_gaze_row_by_row():
    vlm = vision_subject()
    batch = two_rows(vlm)
    stop = vlm.tokenizer.convert_tokens_to_ids(".")
    with looking(vlm, Look(HEADS, Schedule(("one", "two"), "sentence"))) as gaze:
        said = vlm.generate(batch, max_new_tokens=12, stop_at_eos=False)
        turns = {one.step: one.turn for one in gaze.seen}
        # The first row has ended a sentence by itself or not; a token fed by hand must count either way.
        gaze._turn, gaze._last = [0, 0], ["", ""]
        gaze._advance(torch.tensor([[stop], [5]]), 3)
        assert gaze._turn == [1, 0]
        gaze._advance(torch.tensor([[stop], [stop]]), 4)
        assert gaze._turn == [1, 1]
    for row in range(2):
        for step in range(11):
            ended = stop in said[row, : step + 1].tolist()
            assert turns[step][row] == int(ended)


def test_contexts_around_a_gaze_keep_what_they_did():
    vlm = vision_subject()
    batch = two_rows(vlm)
    edge = AttentionEdge(1, 0, "last", Span.index(1))
    with attending(vlm, [cut(edge)]), looking(vlm, Look(HEADS, "one", beta=0.5)), attending(vlm, rows=[Rows(1, "last")]) as seen:
        run(vlm, batch)
    for row in range(2):
        assert seen.rows[0].weights[row, 0, batch.start[row] + 1] == 0
        assert seen.rows[0].weights[row, 3, batch.start[row] + 1] > 0


def test_a_window_that_has_dropped_the_target_is_reported():
    vlm = vision_subject("gemma3")
    batch = two_rows(vlm)
    with looking(vlm, Look(HEADS, "one", when="decode")) as gaze:
        vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    assert gaze.reach()[1] == 1.0
    assert gaze.reach()[0] == 0.0


@families
def test_a_region_may_stand_for_the_span_of_its_tokens(family):
    vlm = vision_subject(family)
    box = (24.0, 0.0, 60.0, 48.0)
    batch = vlm.look([noise(48, 96), noise(48, 96, 1)], [QUESTION] * 2, regions=[{"one": box}] * 2)
    with looking(vlm, Look(HEADS, "one")):
        named = vlm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    with looking(vlm, Look(HEADS, box)) as gaze:
        assert vlm.generate(batch, max_new_tokens=3, stop_at_eos=False).tolist() == named.tolist()
    # Sliding layers of Gemma forget the image.
    assert gaze.mass(box) > (0.6 if family == "gemma3" else 0.99)
    assert gaze.firings()[0].label == f"look at {box} with 3 heads"
    turns = Schedule(("one", (48.0, 0.0, 72.0, 48.0)), (0, 1))
    with looking(vlm, Look(HEADS, turns, when="decode")) as gaze:
        vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    assert [firing.forwards for firing in gaze.firings()] == [1, 2]


def test_wrong_requests_are_refused():
    vlm = vision_subject()
    batch = two_rows(vlm)
    with pytest.raises(OutOfRange, match="beta must be a number above 0"):
        Look(HEADS, "one", beta=-1.0)
    with pytest.raises(OutOfRange, match="beta must be a number above 0"):
        Look(HEADS, "one", beta=0.0)
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        Look(HEADS, "one", mass=1.0)
    with pytest.raises(OutOfRange, match="rising steps"):
        Schedule(("one", "two"), (3, 1))
    with pytest.raises(OutOfRange, match="head 9"):
        looking(vlm, Look((Site("head_z", 0, 9),), "one")).__enter__()
    with pytest.raises(EditError, match="head by head"):
        looking(vlm, Look((Site("resid_post", 0),), "one")).__enter__()
    with pytest.raises(UnknownName, match=r"unknown span 'onne'.*'one'"), looking(vlm, Look(HEADS, "onne")):
        run(vlm, batch)
    with pytest.raises(RegionError, match="lies outside the image"), looking(vlm, Look(HEADS, (200.0, 0.0, 240.0, 9.0))):
        run(vlm, batch)
    with pytest.raises(RegionError, match="without images have no region"), looking(vlm, Look(HEADS, (0.0, 0.0, 9.0, 9.0))):
        run(vlm, vlm.encode(["what is here ?"]))
    with pytest.raises(EditNeverFired, match="starts later"), looking(vlm, Look(HEADS, "one", when="decode")):
        run(vlm, batch)


def test_a_list_s_number_ends_no_sentence():
    vlm = vision_subject()
    batch = two_rows(vlm)
    dot, one = vlm.tokenizer.convert_tokens_to_ids("."), vlm.tokenizer.convert_tokens_to_ids("fox")
    with looking(vlm, Look(HEADS, Schedule(("one", "two"), "sentence"))) as gaze:
        run(vlm, batch)
        gaze._texts = {one: "3", dot: "."}
        for step, token in enumerate([one, dot, dot]):
            gaze._advance(torch.full((2, 1), token), step)
            assert gaze._turn == ([1, 1] if step == 2 else [0, 0])


def test_a_live_target_can_be_moved_and_let_go_between_tokens():
    vlm = vision_subject()
    batch = two_rows(vlm)
    live = Live()
    clean = vlm.generate(batch, max_new_tokens=8, stop_at_eos=False)

    def point(_module, _args, kwargs) -> None:
        step = cache_among(kwargs).get_seq_length() - batch.n_cols
        columns = [[batch.columns(row, Span(name)) for row in range(2)] for name in ("one", "two")]
        {0: lambda: live.turn_to(*columns[0]), 2: lambda: live.turn_to(*columns[1]), 4: live.turn_to}.get(step, lambda: None)()

    handle = vlm.entry.register_forward_pre_hook(point, with_kwargs=True)
    try:
        with looking(vlm, Look(HEADS[1:], live)) as gaze, attending(vlm, rows=[Rows(1, "generated", (0,))]) as seen:
            steered = vlm.generate(batch, max_new_tokens=8, stop_at_eos=False)
    finally:
        handle.remove()
    assert steered[:, 0].tolist() == clean[:, 0].tolist()
    weights, rows, cols = seen.rows[0].weights[:, 0], torch.cat(seen.rows[0].rows), torch.cat(seen.rows[0].cols)
    for at in range(len(weights)):
        step = int(cols[at]) - batch.n_cols
        for name, steps in (("one", (0, 1)), ("two", (2, 3))):
            share = float(weights[at, batch.columns(int(rows[at]), Span(name))].sum())
            assert (share > 1 - 1e-6) == (step in steps)
    assert sorted({one.step for one in gaze.seen}) == [0, 1, 2, 3]
    assert [f.tokens for f in gaze.firings()] == [4, 4, 0]


def test_a_live_target_that_was_let_go_from_the_start_owes_nothing_and_one_that_stood_does():
    vlm = vision_subject()
    batch = two_rows(vlm)
    clean = run(vlm, batch).logits
    free, pointed = Live(), Live()
    free.turn_to()
    pointed.turn_to(*[batch.columns(row, Span("one")) for row in range(2)])
    with looking(vlm, Look(HEADS, free)) as gaze:
        assert torch.equal(run(vlm, batch).logits, clean)
        # Too late: nothing is run after it.
        free.turn_to(*pointed.turns[0])
    assert not gaze.seen
    with pytest.raises(EditNeverFired, match="turn 0"), looking(vlm, Look(HEADS, pointed, when="decode")):
        run(vlm, batch)
