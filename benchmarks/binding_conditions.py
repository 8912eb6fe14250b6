"""When does what a reference shows go through the text by itself? One small generator per condition, all else alike.

    OMP_NUM_THREADS=1 python benchmarks/binding_conditions.py FOLDER [CONDITION ...]    # may be stopped at any time

Every condition trains drawn-flux's recipe anew, with the shipped autoencoder and fewer steps, and changes one thing. Then the
reference is hidden from the text, and from the picture, in all blocks, and the share of pictures that lose the property is
counted (held-out combinations, the shipped judge, Wilson intervals). Rows go to `results/binding_conditions.jsonl`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mediant.measures.intervals import wilson
from mediant.measures.picture_judge import PictureJudge
from mediant.studies.reference_binding import method
from mediant.studies.reference_binding.verdicts import PROPERTIES, DrawnVerdicts, Verdicts
from mediant.subject import catalogue, load
from mediant.subject.generator import ImageGenerator
from mediant.tasks.pictures import requests
from mediant.zoo.drawn_flux import recipe
from mediant.zoo.drawn_flux.parts import Geometry
from mediant.zoo.drawn_flux.recipe import Plan

RESULTS = Path(__file__).parent / "results" / "binding_conditions.jsonl"
STEPS, N, AT_ONCE = 2_500, 120, 40
SHORT = Plan(loop=replace(recipe.DRAWING, steps=STEPS))
CONDITIONS = {
    "as it is": SHORT,
    "twice as deep": replace(SHORT, geometry=Geometry(single=12)),
    "a reader that learnt first and stays as it is": replace(SHORT, frozen_text=True),
    "twice as many text slots": replace(SHORT, geometry=Geometry(slots=64)),
    "picture blind to the reference in half of the steps": replace(SHORT, blind=0.5),
}
CUTS = {"ref_to_text": [("reference", "text")], "ref_to_image": [("reference", "picture")]}


def shown(flux: ImageGenerator, judge: Verdicts, name: str, cuts: list[tuple[str, str]]) -> list[bool]:
    """For each test request, whether its picture shows the property."""
    every = requests.generate(name, N, seed=0, split="heldout")
    found: list[bool] = []
    for i in range(0, N, AT_ONCE):
        chunk = every[i : i + AT_ONCE]
        batch = method.encoded(flux, chunk)
        latents = method.knockout(flux, batch, cuts, steps=4) if cuts else flux.sample(batch, steps=4)
        found += judge.shown(name, chunk, flux.pixels(latents))
    return found


def rows(condition: str, flux: ImageGenerator, judge: Verdicts) -> list[dict[str, object]]:
    """One row per property."""
    found = []
    for name in PROPERTIES:
        before = shown(flux, judge, name, [])
        had = [i for i, one in enumerate(before) if one]
        row: dict[str, object] = {
            "condition": condition, "property": name, "edit_success": len(had) / N, "edit_success_ci95": wilson(len(had), N),
        }  # fmt: skip
        for key, cuts in CUTS.items():
            after = shown(flux, judge, name, cuts)
            lost = sum(not after[i] for i in had)
            row |= {f"{key}_lost": lost / max(1, len(had)), f"{key}_ci95": wilson(lost, max(1, len(had))), "n": len(had)}
        found.append(row)
    return found


def main(folder: Path, chosen: list[str]) -> None:
    """Train what is not there yet, then measure."""
    torch.set_num_threads(1)
    shipped = {name: catalogue.shipped(catalogue.card(name)) for name in ("drawn-flux", "drawn-judge")}
    judge = DrawnVerdicts(PictureJudge.load(shipped["drawn-judge"] or Path("drawn-judge")))
    for condition in chosen or CONDITIONS:
        place = folder / condition.replace(" ", "-")
        done = recipe.teach(
            place, seconds=10**9, plan=CONDITIONS[condition], autoencoder=shipped["drawn-flux"],
            tell=lambda stage, step, n, loss: step % 100 == 0 and print(stage, step, n, round(loss, 4), flush=True),
        )  # fmt: skip
        flux = load(place / "model")
        assert done
        assert isinstance(flux, ImageGenerator)
        with RESULTS.open("a", encoding="utf-8") as file:
            for row in rows(condition, flux, judge):
                print(json.dumps(row))
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
