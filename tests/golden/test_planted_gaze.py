"""A head that looks at the panel asked for, set by hand in every family, is found first; turning it turns nothing else."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from eyes import BUILDERS, vision_subject
from mediant.core import Site, Span
from mediant.interventions import run
from mediant.interventions.look import Look
from mediant.interventions.looking import looking
from mediant.search.gaze import GazeScores, attention_on
from mediant.subject.vision import VisionSubject

pytestmark = pytest.mark.usefixtures("no_gradients")
LAYER, HEAD, PANELS = 1, 2, 3
ORDINALS = ("first", "second", "third")
COLOURS = ((230, 30, 30), (30, 210, 60), (40, 60, 240))
# Rotary positions turn these two numbers of a head of eight by a thousandth of a radian per token: what is set there stays put.
SLOW = (3, 7)
NAMES = [f"panel {k}" for k in range(PANELS)]


def strip(seed: int) -> np.ndarray:
    """Three panels of their own colours, with some noise, in a square that no family crops."""
    noise = np.random.default_rng(seed).integers(-20, 21, (48, 48, 3))
    image = np.concatenate([np.broadcast_to(colour, (48, 16, 3)) for colour in COLOURS], axis=1) + noise
    return image.clip(0, 255).astype(np.uint8)


def boxes() -> dict[str, tuple[float, float, float, float]]:
    return {name: (16.0 * k, 0.0, 16.0 * (k + 1), 48.0) for k, name in enumerate(NAMES)}


def asked(vlm: VisionSubject, image: np.ndarray):
    """One prompt per panel; its ordinal is the last word."""
    questions = [f"what happens in the panel {word}" for word in ORDINALS]
    return vlm.look([image] * PANELS, questions, regions=[boxes()] * PANELS)


def planted(family: str) -> VisionSubject:
    """A copy whose head points from each ordinal to the panel of that number, by least squares on what enters the layer."""
    vlm = vision_subject(family, local=True)
    model, tokenizer = copy.deepcopy(vlm.model), copy.deepcopy(vlm.tokenizer)
    tokenizer.chat_template = None
    vlm = replace(vlm, model=model, tokenizer=tokenizer)
    inputs, places = [], []
    for seed in range(6):
        batch = asked(vlm, strip(seed))
        seen = run(vlm, batch, capture=[(Site("attn_in", LAYER), "prompt")]).captured["attn_in.1", "prompt"]
        panel = torch.full((batch.n_rows, batch.n_cols), -1)
        for k, name in enumerate(NAMES):
            rows, cols = batch.locate(Span(name))
            panel[rows, cols] = k
        ordinal = torch.full_like(panel, -1)
        for k in range(PANELS):
            ordinal[k, batch.stop[k] - 1] = k
        inputs.append(seen.values)
        places.append(torch.stack([panel[seen.rows, seen.cols], ordinal[seen.rows, seen.cols]]))
    x, where = torch.cat(inputs).double(), torch.cat(places, 1)
    attention = vlm.family.attn_of(model, LAYER)
    for name, which, head in (("k_proj", where[0], HEAD // vlm.shape.group), ("q_proj", where[1], HEAD)):
        angle = 2 * torch.pi * torch.arange(PANELS, dtype=torch.double) / PANELS
        wanted = torch.zeros(len(x), 2, dtype=torch.double)
        wanted[which >= 0] = torch.stack([angle.cos(), angle.sin()], 1)[which[which >= 0]] * 12
        solved = torch.linalg.lstsq(x.T @ x + 1e-3 * torch.eye(x.shape[1], dtype=torch.double), x.T @ wanted).solution
        projection = getattr(attention, name)
        rows = [head * vlm.shape.d_head + i for i in range(vlm.shape.d_head)]
        projection.weight[rows] = 0
        projection.weight[[rows[i] for i in SLOW]] = solved.T.to(projection.weight)
        if projection.bias is not None:
            projection.bias[rows] = 0
        norm = getattr(attention, name.replace("proj", "norm"), None)
        if norm is not None:
            # Norms of queries and keys would take the length away again.
            norm.weight.fill_(3.0)
    return vlm


@pytest.mark.parametrize("family", list(BUILDERS))
def test_the_planted_head_is_ranked_first(family):
    vlm = planted(family)
    found = [attention_on(vlm, asked(vlm, strip(seed)), NAMES) for seed in range(20, 26)]
    scores = GazeScores(*(np.stack(part) for part in zip(*found, strict=True)))
    best, second = scores.ranking().top(2)
    assert best.site == Site("head_z", LAYER, HEAD)
    assert best.score > 1.3 * second.score
    assert scores.routing()[:, :, LAYER, HEAD].mean() == 1.0
    assert scores.ranking("selectivity").top(1)[0].site == Site("head_z", LAYER, HEAD)


@pytest.mark.parametrize("family", list(BUILDERS))
def test_turning_the_planted_head_shows_in_its_own_output_alone(family):
    vlm = planted(family)
    batch = asked(vlm, strip(3))
    heads = [Site("head_z", LAYER, h) for h in range(vlm.shape.n_heads)]
    clean = run(vlm, batch, capture=[(site, "last") for site in heads]).captured
    with looking(vlm, Look((heads[HEAD],), "panel 1")):
        turned = run(vlm, batch, capture=[(site, "last") for site in heads]).captured
    for site in heads:
        same = torch.allclose(clean[site, Span("last")].values, turned[site, Span("last")].values, atol=1e-6)
        assert same == (site.head != HEAD)
    # Asked for the second panel, it already looked there.
    moved = (turned[heads[HEAD], Span("last")].values - clean[heads[HEAD], Span("last")].values).norm(dim=-1)
    assert moved[1] < moved[0]
    assert moved[1] < moved[2]
