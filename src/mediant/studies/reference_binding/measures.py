"""From verdicts to measures with intervals: what each number means is said here.

A property counts as lost, found or moved only where it was there: interventions are made on requests whose picture showed it to
begin with and whose empty run does not, and on pairs whose own picture does not show the other's property anyway. Rates have the
judge's known errors taken out, and their intervals (Wilson's for the items) are widened by what is not known of those errors.
What is lost is counted among requests that the judge chose, of which it says the same again where nothing changed (`corrected`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mediant.core.result import Measure
from mediant.measures.intervals import wilson
from mediant.measures.picture_judge import Errors, corrected
from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.padding_dose import FILLER, WORDS, Dose
from mediant.studies.reference_binding.repair import Repair
from mediant.studies.reference_binding.verdicts import Verdicts

if TYPE_CHECKING:
    from mediant.studies.reference_binding.experiment import Findings

Rows = Mapping[str, Sequence[bool]]
# Percent in the paper (recomputed there from its own verdicts): FLUX.2 [klein] 9B, 32 blocks, four steps.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "lens": {"colour": 100.0, "style": 91.8, "identity": 0.0},
    "lens_padding": {"style": 80.4},
    "lens_content": {"style": 44.0},
    "knockout_ref_to_text": {"colour": 86.2, "style": 97.3, "identity": 45.6},
    "knockout_ref_to_text_padding": {"colour": 70.0, "style": 62.9, "identity": 16.7},
    "knockout_ref_to_text_content": {"colour": 5.0, "style": 27.6, "identity": 7.8},
    "knockout_ref_to_image": {"colour": 13.4, "style": 16.4, "identity": 76.7},
    "patching": {"colour": 92.0, "style": 87.6, "identity": 0.7},
    "patching_padding": {"colour": 85.0, "style": 82.0, "identity": 0.0},
    "patching_content": {"colour": 0.4, "style": 2.9, "identity": 0.4},
}
ENDS = {"text": "text", "picture": "image"}


def of_subject(config: Config, verdicts: Verdicts, found: "Findings", tail: str) -> dict[str, Measure]:
    """All measures of one subject; `tail` is put behind every name."""
    measures = _drawing(found.drawn, verdicts)
    for name in config.properties:
        rows, errors = found.rows[name], verdicts.errors(name)
        measures[f"edit_success_{name}"] = _rate(
            found.tried[name], errors, f"share of pictures that show their reference's {name}"
        )
        measures |= _lens(name, config, rows, errors)
        measures |= _knockouts(name, rows, errors)
        measures |= _patching(name, config, rows, errors)
        measures |= _heads(name, config, rows, errors, len(found.chosen.heads[name]["text"]))
        measures |= _repairs(name, found.repairs.get(name, ()))
        measures |= _doses(name, config, found.doses.get(name, ()), errors)
        measures |= _asked(name, config, found.answers.get(name, {}))
    return {f"{name}{tail}": measure for name, measure in measures.items()}


def _drawing(drawn: Sequence[Mapping[str, bool]], verdicts: Verdicts) -> dict[str, Measure]:
    """How well the subject draws from text alone."""
    what = "share of pictures drawn without a reference"
    if not any(drawn):
        reason = "nothing is known of what these instructions name"
        return {"t2i_concept_accuracy": Measure(value=None, n=0, definition=f"{what} that show the thing named", reason=reason)}
    found = {
        f"t2i_{'concept' if name == 'kind' else name}_accuracy": _rate(
            [one[name] for one in drawn if name in one], verdicts.errors("named colour" if name == "colour" else name),
            f"{what} whose {name} is the one named",
        )
        for name in ("kind", "place", "style", "colour")
    }  # fmt: skip
    every = f"{what} in which kind, place, style and colour all are as named; the judge's own errors count against them"
    return found | {"t2i_everything_accuracy": _counted([all(one.values()) for one in drawn], every)}


def _lens(name: str, config: Config, rows: Rows, errors: Errors | None) -> dict[str, Measure]:
    what = (
        f"share of pictures made without instruction or reference that show the {name} of a reference whose run's {{}} was put in"
    )
    slots = {"": ("text", "text"), "_padding": (config.padding, "padding"), "_content": ("instruction", "instruction's slots")}
    found = {
        f"lens_{name}{tail}": _rate(
            rows[f"lens {slot}"], errors, what.format(words),
            control=f"lens_{name}_without",
        )
        for tail, (slot, words) in slots.items()
    }  # fmt: skip
    found[f"lens_{name}_without"] = _rate(
        rows["text alone"], errors, f"control: share of pictures of the same instruction alone that show the {name}"
    )
    return found


def _knockouts(name: str, rows: Rows, errors: Errors | None) -> dict[str, Measure]:
    found = {}
    for end, words in (("text", "text"), ("text_padding", "padding"), ("text_content", "instruction"), ("image", "picture")):
        head, _, part = end.partition("_")
        key = f"knockout_ref_to_{head}_{name}" + (f"_{part}" if part else "")
        control = f"knockout_ref_to_{head}_{name}_random"
        what = f"share of pictures that lose their reference's {name} when its tokens are hidden from the {words} in all blocks"
        found[key] = _lost(rows[f"ref_to_{end}"], errors, what, control=control)
    for query, end in ENDS.items():
        found[f"knockout_ref_to_{end}_{name}_random"] = _lost(
            rows[f"random keys to {query}"], errors,
            f"control: the same, with as many tokens of text and picture, drawn anew, hidden from the {query} instead",
        )  # fmt: skip
    found[f"knockout_all_{name}"] = _lost(
        rows["nothing of it"],
        errors,
        f"share that lose their {name} when nothing sees the reference: the most there is to lose",
    )
    return found


def _patching(name: str, config: Config, rows: Rows, errors: Errors | None) -> dict[str, Measure]:
    what = f"share of pairs in which a picture takes on the {name} of another run's reference with that run's {{}}, in every step"
    slots = {"": ("text", "text"), "_padding": (config.padding, "padding"), "_content": ("instruction", "instruction's slots")}
    found = {
        f"patching_{name}{tail}": _rate(rows[f"patched {slot}"], errors, what.format(words), control=f"patching_{name}_random")
        for tail, (slot, words) in slots.items()
    }
    found[f"patching_{name}_random"] = _rate(
        rows["patched stranger"],
        errors,
        f"control: the same with the text of a third run, judged by the second's {name}",
    )
    return found


def _heads(name: str, config: Config, rows: Rows, errors: Errors | None, k: int) -> dict[str, Measure]:
    found = {}
    for query, end in ENDS.items():
        key = f"heads_ref_to_{end}_{name}"
        what = f"share that lose their {name} when the reference is hidden from the {query} in the {k} heads found to carry it"
        found[key] = _lost(rows[f"heads to {query}"], errors, what, control=f"{key}_random")
        for tail, kind, which in (("_random", "random", "any"), ("_layer_matched_random", "layer-matched", "the same")):
            found[f"{key}{tail}"] = _lost(
                rows[f"{kind} heads to {query}"], errors,
                f"control: the same in as many other heads of {which} blocks (or all left there), drawn anew for every "
                f"{config.batch} requests",
            )  # fmt: skip
    return found


def _doses(name: str, config: Config, doses: Sequence[Dose], errors: Errors | None) -> dict[str, Measure]:
    """Swapped text at shrinking amounts of padding."""
    tails = {"text": "", config.padding: "_padding", WORDS: "_words", FILLER: "_filler"}
    what = {"text": "text", config.padding: "padding", WORDS: "instruction's own words", FILLER: "words that say nothing"}
    return {
        f"dose_{name}_{round(100 * dose.share)}{tails[slots]}": _rate(
            moved, errors,
            f"share of pairs whose picture takes on the {name} of another run's reference with that run's {what[slots]}, when "
            f"the instruction leaves {dose.padding:.1f} slots of padding ({dose.share:.0%} of a plain one's)",
        )
        for dose in doses
        for slots, moved in dose.moved.items()
    }  # fmt: skip


def _repairs(name: str, repairs: Sequence[Repair]) -> dict[str, Measure]:
    """Failed requests with a flow strengthened; the judge's errors are not taken out, since it chose the failures itself."""
    short, found = {"reference": "ref", "picture": "image", "text": "text"}, dict[str, Measure]()
    for one in repairs:
        key = f"repair_{short[one.flow[0]]}_to_{short[one.flow[1]]}_{one.beta:g}_{name}"
        blocks = f"blocks {one.layers[0]} to {one.layers[-1]}"
        what = f"with {one.beta:g} nats added to attention from {one.flow[0]} to {one.flow[1]} in {blocks}"
        found[key] = _counted(
            one.shown, f"share of requests without their reference's {name} that show it {what}", f"{key}_random"
        )
        found[f"{key}_random"] = _counted(one.random, "control: the same for random tokens in place of those read")
        found[f"{key}_kept"] = _counted(one.kept, f"share of requests with their reference's {name} that still show it {what}")
    return found


def _counted(shown: Sequence[bool], definition: str, control: str | None = None) -> Measure:
    if not shown:
        return Measure(value=None, n=0, definition=definition, control=control, reason="there was no such request")
    ci95 = wilson(sum(shown), len(shown))
    return Measure(value=sum(shown) / len(shown), n=len(shown), ci95=ci95, definition=f"{definition} (Wilson)", control=control)


def _asked(name: str, config: Config, answers: Mapping[str, Sequence[bool | None]]) -> dict[str, Measure]:
    """The same interventions by the multimodal judge's word, over all requests as in the paper."""
    slots = {"text": "", config.padding: "_padding", "instruction": "_content"}
    names = {f"lens {slot}": f"lens_{name}{tail}" for slot, tail in slots.items()}
    names |= {f"patched {slot}": f"patching_{name}{tail}" for slot, tail in slots.items()}
    names |= {f"ref_to_text{tail}": f"knockout_ref_to_text_{name}{tail}" for tail in ("", "_padding", "_content")}
    names |= {"ref_to_image": f"knockout_ref_to_image_{name}"}
    found = {}
    for condition, key in names.items():
        told = [one for one in answers.get(condition, ()) if one is not None]
        if told:
            found[f"{key}_judged"] = Measure(
                value=sum(told) / len(told), n=len(told), ci95=wilson(sum(told), len(told)),
                definition=f"share of all pictures in which {config.endpoint_model}, asked as in the paper, says that the "
                f"intervention did what {key} counts (Wilson)",
            )  # fmt: skip
    return found


def _rate(
    shown: Sequence[bool], errors: Errors | None, definition: str, control: str | None = None, *, chosen: bool = False
) -> Measure:
    if not shown:
        return Measure(value=None, n=0, definition=definition, control=control, reason="no request was left to judge")
    if errors is None:
        return _counted(shown, definition, control)
    one = corrected(sum(shown), len(shown), errors, chosen=chosen)
    reason = f"{sum(shown)} of {len(shown)} by the judge's own count"
    return Measure(value=one.value, n=one.n, ci95=one.ci95, definition=definition, control=control, reason=reason)


def _lost(shown: Sequence[bool], errors: Errors | None, definition: str, control: str | None = None) -> Measure:
    kept = _rate(shown, errors, definition, control, chosen=True)
    if kept.value is None or kept.ci95 is None:
        return kept
    reason = f"{len(shown) - sum(shown)} of {len(shown)} by the judge's own count"
    ends = (1 - kept.ci95[1], 1 - kept.ci95[0])
    return Measure(value=1 - kept.value, n=kept.n, ci95=ends, definition=definition, control=control, reason=reason)
