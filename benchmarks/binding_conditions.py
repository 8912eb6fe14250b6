"""When does what a reference shows go through the text by itself? One small generator per condition, all else alike.

    python benchmarks/binding_conditions.py FOLDER [--device cuda] [--only CONDITION]     # may be stopped at any time
    python benchmarks/binding_conditions.py --table                                       # of the rows that are there

Every condition trains drawn-flux's recipe anew, with the shipped autoencoder and a quarter of the steps, and changes one thing.
Then the reference is hidden from the text, from its padding, and from the picture, in all blocks, and the share of pictures that
lose the property is counted (held-out combinations, the shipped judge, Wilson intervals). Rows go to
`results/binding_conditions.jsonl`.
"""

import argparse
import json
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
from mediant.tasks.requests import Request
from mediant.zoo.drawn_flux import recipe
from mediant.zoo.drawn_flux.bank import enlarged
from mediant.zoo.drawn_flux.parts import Geometry
from mediant.zoo.drawn_flux.plan import Plan, pace_on

RESULTS = Path(__file__).parent / "results" / "binding_conditions.jsonl"
N, AT_ONCE = 200, 40
SHORT = Plan(share=0.25)
CONDITIONS = {
    "as it is": SHORT,
    "twice as deep": replace(SHORT, geometry=Geometry(single=12)),
    "a reader that learnt first and stays as it is": replace(SHORT, frozen_text=True),
    "twice as many text slots": replace(SHORT, geometry=Geometry(slots=64)),
    "picture blind to the reference in half of the steps": replace(SHORT, blind=0.5),
    "a reference of four times as many tokens": replace(SHORT, enlarge=2),
    "four times as long": replace(SHORT, share=1.0),
}
CUTS = {
    "ref_to_text": [("reference", "text")],
    "ref_to_padding": [("reference", "beside")],
    "ref_to_image": [("reference", "picture")],
}


def asked(name: str, plan: Plan) -> list[Request]:
    """Test requests, their references as large as the condition wants."""
    every = requests.generate(name, N, seed=0, split="heldout")
    return [replace(each, references=tuple(enlarged(one[None], plan.enlarge)[0] for one in each.references)) for each in every]


def shown(flux: ImageGenerator, judge: Verdicts, name: str, every: list[Request], cuts: list[tuple[str, str]]) -> list[bool]:
    """For each test request, whether its picture shows the property."""
    found: list[bool] = []
    for i in range(0, N, AT_ONCE):
        chunk = every[i : i + AT_ONCE]
        batch = method.encoded(flux, chunk)
        latents = method.knockout(flux, batch, cuts, steps=4) if cuts else flux.sample(batch, steps=4)
        found += judge.shown(name, chunk, flux.pixels(latents))
    return found


def rows(condition: str, flux: ImageGenerator, judge: Verdicts, plan: Plan, *, device: str) -> list[dict[str, object]]:
    """One row per property."""
    found = []
    pace = pace_on(device)
    for name in PROPERTIES:
        every = asked(name, plan)
        before = shown(flux, judge, name, every, [])
        had = [i for i, one in enumerate(before) if one]
        row: dict[str, object] = {
            "condition": condition, "property": name, "steps": round(plan.share * pace.drawing.steps), "batch": pace.batch,
            "edit_success": len(had) / N, "edit_success_ci95": wilson(len(had), N), "n": len(had),
        }  # fmt: skip
        for key, cuts in CUTS.items():
            after = shown(flux, judge, name, every, cuts)
            lost = sum(not after[i] for i in had)
            row |= {f"{key}_lost": lost / max(1, len(had)), f"{key}_ci95": wilson(lost, max(1, len(had)))}
        found.append(row)
    return found


def table(file: Path) -> str:
    """Rows as a table in Markdown: shares lost in percent, with 95 % intervals, by what the reference was hidden from."""
    lines = ["| condition | property | shown by | text | its padding | picture |", "|---|---|---|---|---|---|"]
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cells = [
            f"{100 * row[f'{key}_lost']:.0f} [{', '.join(f'{100 * end:.0f}' for end in row[f'{key}_ci95'])}]" for key in CUTS
        ]
        lines.append(f"| {row['condition']} | {row['property']} | {row['n']} of {N} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not there yet, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--table", action="store_true", help="print the rows there are, and do nothing else")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=list(CONDITIONS), help="one condition")
    parser.add_argument("--autoencoder", type=Path, help="a pipeline's folder, instead of the shipped one's")
    parser.add_argument("--judge", type=Path, help="a judge's folder, instead of the shipped one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.table:
        print(table(given.results))
        return
    if given.folder is None:
        parser.error("a folder to train in, or --table")
    torch.set_num_threads(1)
    autoencoder = given.autoencoder or catalogue.shipped(catalogue.card("drawn-flux"))
    for condition in [given.only] if given.only else CONDITIONS:
        place = given.folder / condition.replace(" ", "-")
        done = recipe.teach(
            place, seconds=10**9, plan=CONDITIONS[condition], autoencoder=autoencoder, device=given.device,
            tell=lambda stage, step, n, loss: step % 100 == 0 and print(stage, step, n, round(loss, 4), flush=True),
        )  # fmt: skip
        flux = load(place / "model", device=given.device)
        assert done
        assert isinstance(flux, ImageGenerator)
        judge = DrawnVerdicts(PictureJudge.load(given.judge or catalogue.shipped(catalogue.card("drawn-judge"))))
        with given.results.open("a", encoding="utf-8") as file:
            for row in rows(condition, flux, judge, CONDITIONS[condition], device=given.device):
                print(json.dumps(row))
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
