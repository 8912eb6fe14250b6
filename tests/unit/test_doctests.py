"""The examples in docstrings run and give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import mediant

ROOT = Path(mediant.__file__).parent
WITH_EXAMPLES = [
    ".".join(("mediant", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_give_what_they_show(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0, f"{name} has examples that no docstring holds"


@pytest.mark.parametrize(
    "part", ["core.site", "core.span", "core.edge", "core.pair", "core.ranking", "core.direction", "core.result", "core.errors"]
)
def test_every_part_of_the_core_shows_an_example(part):
    assert f"mediant.{part}" in WITH_EXAMPLES
