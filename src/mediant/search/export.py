"""Take a direction elsewhere: a folder that steers the bare transformers model, with nothing of this package.

    export_steering(lm, found.direction, "polite", doses=2)
    # polite/direction.safetensors, polite/apply.py, polite/README.txt
    # python polite/apply.py path/to/model "Dear Sir,"

The module path is looked up in the subject's own model and stored as text in the tensor file's metadata. The file is
still a saved `Direction`, so `Direction.load` reads it.
"""

from dataclasses import replace
from pathlib import Path

from mediant.core.direction import Direction
from mediant.core.errors import EditError, RunError
from mediant.core.site import HEAD_KINDS, Site
from mediant.interventions.taps import Tap, tap
from mediant.subject import Subject

APPLY = '''"""Add direction.safetensors to a transformers model: python apply.py MODEL "prompt" [times]"""
import json
import sys
from pathlib import Path

from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


def attach(model, times=1.0, file=Path(__file__).with_name("direction.safetensors")):
    """Hook the vector in, `times` as strong as exported; `.remove()` on what is returned takes it out."""
    with safe_open(str(file), framework="pt") as opened:
        saved, vector = json.loads(opened.metadata()["direction"]), opened.get_tensor("vector")
    place = saved["meta"]
    vector = vector * (float(place["doses"]) * saved["norm"] * times)
    start = int(place["start"])

    def moved(hidden):
        hidden = hidden.clone()
        hidden[..., start : start + len(vector)] += vector.to(hidden)
        return hidden

    def on_input(module, args, kwargs):
        if args:
            return (moved(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": moved(kwargs["hidden_states"])}

    def on_output(module, args, output):
        return (moved(output[0]), *output[1:]) if isinstance(output, tuple) else moved(output)

    module = model.get_submodule(place["module"])
    if place["side"] == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
    inputs = tokenizer(sys.argv[2], return_tensors="pt")
    for times in (0.0, float(sys.argv[3]) if len(sys.argv) > 3 else 1.0):
        hook = attach(model, times)
        out = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        hook.remove()
        print(f"[{times:g}] {tokenizer.decode(out[0], skip_special_tokens=True)}")
'''

README = """Steering direction {name}
=========================

direction.safetensors  unit vector of {width} numbers (tensor "vector"); the rest is in the file's metadata
apply.py               adds it to a transformers model with one forward hook; needs torch, transformers, safetensors

    python apply.py MODEL "a prompt"          without, then with the vector (MODEL: folder or hub id)
    python apply.py MODEL "a prompt" -1       the other way round

    from apply import attach
    handle = attach(model)                    every token from now on, prompt and continuation
    handle.remove()

model      {model}
place      {side} of module {module}  (site {site})
strength   {doses:g} dose(s) of length {norm:.6g}
{found}
The vector belongs to this model alone. That it tells examples apart does not say what else it changes: compare
unrelated text with and without it.
"""


def export_steering(subject: Subject, direction: Direction, folder: Path | str, *, doses: float = 1.0) -> Path:
    """Write a direction with a short script that adds it to the bare model; returns the folder.

    The script does what `edit(subject, steer(direction, doses=doses))` does, bit for bit except at `resid_mid` and
    `head_result`, which no module passes on by themselves: there it equals the edit to rounding.

    Raises:
        EditError: the direction does not fit the site, or the site is all heads together.
        RunError: the folder cannot be written.
        SubjectError, OutOfRange: the subject does not have the site.
    """
    site, reached = direction.site, tap(subject, direction.site)
    start, width = _place(subject, site, reached)
    if direction.vector.shape != (width,):
        raise EditError(f"{site} of {subject.name} is {width} wide, but the direction has shape {direction.vector.shape}")
    path = next(name for name, module in subject.model.named_modules() if module is reached.module)
    where = {"module": path, "side": reached.side, "start": str(start), "doses": repr(float(doses)), "model": subject.name}
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        replace(direction, meta={**direction.meta, **where}).save(target / "direction.safetensors")
        (target / "apply.py").write_text(APPLY, encoding="utf-8")
        (target / "README.txt").write_text(_readme(direction, where, doses), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {target}: {error}; give a folder that can be made") from error
    return target


def _place(subject: Subject, site: Site, reached: Tap) -> tuple[int, int]:
    """First entry and width of the site in the tensor its module passes on."""
    shape = subject.shape
    if site.kind in HEAD_KINDS and site.head is None:
        raise EditError(f"site {str(site)!r} is all heads together; a direction lives in one, e.g. '{site}.0'")
    if reached.heads:
        return (reached.part or (0, 0))[0] + (site.head or 0) * shape.d_head, shape.d_head
    return 0, shape.d_mlp if site.kind == "mlp_post" else shape.d_model


def _readme(direction: Direction, where: dict[str, str], doses: float) -> str:
    found = "".join(f"{key:<10} {direction.meta[key]}\n" for key in ("method", "accuracy", "span") if key in direction.meta)
    return README.format(
        name=direction.name or direction.site, width=len(direction.vector), site=direction.site, norm=direction.norm, doses=doses,
        model=where["model"], module=where["module"], side=where["side"], found=found,
    )  # fmt: skip
