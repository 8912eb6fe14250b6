"""What a task is thought to compute, step by step, so that one step may be exchanged between two inputs.

>>> model = CausalModel(
...     {"a": (), "b": (), "total": ("a", "b"), "odd": ("total",)},
...     {"total": lambda a, b: a + b, "odd": lambda total: total % 2 == 1},
... )
>>> model.run({"a": 2, "b": 3})["odd"]
True
>>> model.interchange({"a": 2, "b": 3}, {"a": 3, "b": 3}, ["total"])["odd"]
False

A subject realises a variable at a mediator if writing the mediator's value of a source run into a base run gives the answer that
this model gives when the variable's value is exchanged (interchange interventions, Geiger et al. 2021, arXiv 2106.02997).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from mediant.core.errors import TaskError, unknown

Values = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CausalModel:
    """Variables, what each is computed from, and how.

    Attributes:
        parents: variable -> the variables it is computed from; those without any are inputs.
        mechanisms: variable -> function of its parents' values, given by name.

    Raises:
        TaskError: a circle, or a variable with parents and no mechanism, or the reverse.
        UnknownName: a parent that is no variable.
    """

    parents: Mapping[str, Sequence[str]]
    mechanisms: Mapping[str, Callable[..., Any]]

    def __post_init__(self) -> None:
        for name, above in self.parents.items():
            for one in above:
                if one not in self.parents:
                    raise unknown("variable", one, self.parents, note=f"(a parent of {name})")
            if bool(above) != (name in self.mechanisms):
                what = "has parents and no mechanism" if above else "has a mechanism and no parents to compute it from"
                raise TaskError(f"variable {name!r} {what}")
        for name in self.mechanisms:
            if name not in self.parents:
                raise unknown("variable", name, self.parents, note="(it has a mechanism)")
        try:
            self.order()
        except CycleError as error:
            raise TaskError(
                f"a causal model has no circles, but this one goes {' -> '.join(map(repr, error.args[1]))}"
            ) from error

    @property
    def inputs(self) -> list[str]:
        """Variables that nothing is computed from."""
        return [name for name, above in self.parents.items() if not above]

    def order(self) -> list[str]:
        """All variables, parents first."""
        return list(TopologicalSorter(self.parents).static_order())

    def run(self, inputs: Values, do: Values | None = None) -> dict[str, Any]:
        """Values of all variables; those in `do` are set, whatever their parents say.

        Raises:
            TaskError: an input is missing.
            UnknownName: something given is no variable, or given as an input and computed.
        """
        fixed = dict(do or {})
        for name in inputs:
            if name not in self.inputs:
                raise unknown("input", name, self.inputs)
        for name in fixed:
            if name not in self.parents:
                raise unknown("variable", name, self.parents)
        missing = [name for name in self.inputs if name not in inputs and name not in fixed]
        if missing:
            raise TaskError(f"the causal model needs {', '.join(map(repr, missing))} as well")
        found: dict[str, Any] = {}
        for name in self.order():
            if name in fixed:
                found[name] = fixed[name]
            elif self.parents[name]:
                found[name] = self.mechanisms[name](**{above: found[above] for above in self.parents[name]})
            else:
                found[name] = inputs[name]
        return {name: found[name] for name in self.parents}

    def interchange(self, base: Values, source: Values, variables: Sequence[str]) -> dict[str, Any]:
        """Values for the base's inputs when some variables have the values they take for the source's."""
        given = self.run(source)
        for name in variables:
            if name not in given:
                raise unknown("variable", name, self.parents)
        return self.run(base, {name: given[name] for name in variables})
