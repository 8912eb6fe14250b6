"""Mutants: small faults that cosmic-ray's operators make, less those in annotations and messages, and a seeded sample of them."""

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutants.tree import ROOMS

# One edge moved, or the sense turned round: a fault that a type error would give away at once tests nothing.
BINARY = {
    "Add": ("Sub",), "Sub": ("Add",), "Mul": ("Div",), "Div": ("Mul",), "FloorDiv": ("Mul",), "Mod": ("Mul",), "Pow": ("Mul",),
    "RShift": ("LShift",), "LShift": ("RShift",), "BitOr": ("BitAnd",), "BitAnd": ("BitOr",), "BitXor": ("BitAnd",),
}  # fmt: skip
COMPARISON = {
    "Eq": ("NotEq",), "NotEq": ("Eq",), "Lt": ("LtE", "GtE"), "LtE": ("Lt", "Gt"), "Gt": ("GtE", "LtE"), "GtE": ("Gt", "Lt"),
    "Is": ("IsNot",), "IsNot": ("Is",),
}  # fmt: skip
UNARY = ("USub_UAdd", "Delete_Invert", "Delete_Not")
PLAIN = (
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop",
)  # fmt: skip
AT_LEAST = 5
FOR_TYPES_ONLY = {"overload", "override", "final", "runtime_checkable"}

Span = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Fault:
    """One mutant: where it is, the operator's occurrence in the file, and the lines whose tests can notice it."""

    key: str
    file: str
    line: int
    column: int
    operator: str
    occurrence: int
    lines: frozenset[int]


def operators() -> list[str]:
    """Names of the operators used."""
    binary = [f"ReplaceBinaryOperator_{a}_{b}" for a, others in BINARY.items() for b in others]
    comparison = [f"ReplaceComparisonOperator_{a}_{b}" for a, others in COMPARISON.items() for b in others]
    return [*binary, *comparison, *(f"ReplaceUnaryOperator_{name}" for name in UNARY), *PLAIN]


def span(node: ast.AST) -> Span:
    """From where to where a node goes: lines from 1, columns in characters for the ASCII code of this package."""
    at: Any = node
    return (at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)


def skipped(module: ast.Module) -> list[Span]:
    """Parts that are no behaviour: annotations, aliases of types, what a raised error says, decorators for types only."""
    parts: list[ast.AST] = []
    for node in ast.walk(module):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            parts.append(node.returns)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts.extend([*node.exc.args, *(k.value for k in node.exc.keywords)])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("cast", "TypeVar") and node.args:
            parts.append(node.args[0])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts.extend(d for d in node.decorator_list if isinstance(d, ast.Name) and d.id in FOR_TYPES_ONLY)
    for statement in module.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.BinOp)
            and isinstance(statement.value.op, ast.BitOr)
        ):
            parts.append(statement.value)
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING":
            parts.append(statement)
    return [span(part) for part in parts]


def operations(module: ast.Module) -> list[Span]:
    """Where the signs of two-sided operations are: between the two sides."""
    nodes = [node for node in ast.walk(module) if isinstance(node, ast.BinOp)]
    return [(span(node.left)[1], span(node.right)[0]) for node in nodes]


def statements(module: ast.Module) -> list[tuple[int, int, int]]:
    """First line of each statement, last line of its head, and last line."""
    lines = []
    for node in ast.walk(module):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            head = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            last = node.end_lineno or node.lineno
            lines.append((head, max(node.lineno, body[0].lineno - 1) if body else last, last))
    return lines


def in_functions(module: ast.Module) -> frozenset[int]:
    """Lines in the bodies of functions: all others run on import, whichever test happens to be the first to import them."""
    bodies = [node.body for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(n for body in bodies for one in body for n in range(one.lineno, (one.end_lineno or one.lineno) + 1))


def noticed_at(place: tuple[int, int], heads: list[tuple[int, int, int]], inner: frozenset[int]) -> frozenset[int]:
    """The lines whose tests can notice a fault: its statement's, or what functions a class, a decorator or else a file has."""
    line = place[0]
    first, last, end = min((h for h in heads if h[0] <= line <= h[1]), key=lambda h: h[1] - h[0], default=(line, line, line))
    if line in inner:
        return frozenset(range(first, last + 1))
    return inner.intersection(range(first, end + 1)) or inner


def within(position: tuple[int, int], parts: Iterable[Span]) -> bool:
    """Whether a position lies in one of the parts."""
    return any(start <= position < end for start, end in parts)


def changed(before: str, after: str) -> tuple[str, str]:
    """The first stretch of lines that differ."""
    old, new = before.splitlines(), after.splitlines()
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    if len(new) < len(old):
        return old[first].strip(), "(removed)"
    return old[first].strip(), new[first].strip()


def mutated(source: str, operator: str, occurrence: int) -> str:
    """The source with one fault."""
    import cosmic_ray.mutating
    import cosmic_ray.plugins

    name = f"core/{operator}"
    return str(cosmic_ray.mutating.mutate_code(source, cosmic_ray.plugins.get_operator(name)(), occurrence))


def places(source: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Where each operator can act: its name, the number of the occurrence, and the position."""
    import cosmic_ray.ast
    import cosmic_ray.plugins

    nodes = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source)))
    for operator in operators():
        made = cosmic_ray.plugins.get_operator(f"core/{operator}")()
        starts = (start for node in nodes for start, _ in made.mutation_positions(node))
        for occurrence, start in enumerate(starts):
            yield operator, occurrence, start


def faults(root: Path, file: str) -> list[Fault]:
    """Every mutant of a file that none of the skipped parts holds. A key outlives changes elsewhere in the file."""
    source = (root / file).read_text(encoding="utf-8")
    module, lines = ast.parse(source), source.splitlines()
    no_go, signs, heads, inner = skipped(module), operations(module), statements(module), in_functions(module)
    made, seen = [], defaultdict[str, int](int)
    for operator, occurrence, place in places(source):
        if within(place, no_go) or (operator.startswith("ReplaceBinary") and not within(place, signs)):
            continue
        text = f"{file}|{operator}|{lines[place[0] - 1].strip()}"
        seen[text] += 1
        key = hashlib.sha256(f"{text}|{seen[text]}".encode()).hexdigest()[:10]
        made.append(Fault(key, file, place[0], place[1], operator, occurrence, noticed_at(place, heads, inner)))
    return made


def compiles(text: str) -> bool:
    """Whether a mutated source is Python at all."""
    try:
        compile(text, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def modules(root: Path, rooms: Iterable[str] = ROOMS) -> list[str]:
    """The files of the rooms."""
    return [str(f.relative_to(root)) for room in rooms for f in sorted((root / "src" / "mediant" / room).glob("*.py"))]


def draw(everything: dict[str, list[Fault]], size: int, seed: int, at_least: int) -> list[Fault]:
    """At least so many of every file, then in proportion to its mutants; by a hash, so a larger sample holds a smaller one."""

    def rank(fault: Fault) -> str:
        return hashlib.sha256(f"{seed}|{fault.key}".encode()).hexdigest()

    base = {file: min(at_least, len(made)) for file, made in everything.items()}
    left = {file: len(made) - base[file] for file, made in everything.items()}
    share = max(size - sum(base.values()), 0) / max(sum(left.values()), 1)
    drawn = []
    for file, made in everything.items():
        drawn.extend(sorted(made, key=rank)[: base[file] + round(left[file] * min(share, 1.0))])
    return drawn


def shown(source: str, text: str, line: int) -> tuple[str, str]:
    """A line before and after."""
    old, new = source.splitlines()[line - 1], text.splitlines()
    if len(new) < len(source.splitlines()):
        return old.strip(), "(removed)"
    return old.strip(), new[line - 1].strip()
