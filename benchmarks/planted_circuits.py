"""Which search finds which planted circuit: writes the table of docs/how-to/positional-circuits.md.

    OMP_NUM_THREADS=1 python benchmarks/planted_circuits.py

Each cell is the AUROC of a search's scores against the edges along which the planted bits travel (`mediant.tasks.toys`), from one
pair. Of searches whose scores are shares of a port, the score is the place at which an edge joins the circuit grown from the
logits; of ACDC, whether it is kept. A test holds the table against what the code gives.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mediant.core.edge_scores import EdgeScores
from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import auroc
from mediant.measures.intervals import Array
from mediant.search.acdc import acdc
from mediant.search.attribution import eap
from mediant.search.circuits import greedy
from mediant.search.exact import edge_patching, edges_in_company
from mediant.search.flow_routes import flow_routes
from mediant.search.masks import optimise_edges
from mediant.tasks.toys import TOYS, Toy, plant

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "positional-circuits.md"
HEADER = f"| method | {' | '.join(TOYS)} |\n|{'---|' * (len(TOYS) + 1)}\n"


def _scores(found: EdgeScores) -> Array:
    return np.abs(found.within[0])


def _grown(toy: Toy) -> Array:
    """Edges of a circuit grown from the logits, the first ones highest."""
    order = greedy(flow_routes(toy.subject, toy.pairs), rule="most_negative", joined=False).edges
    found = np.zeros(graph_of(toy.subject).exists.shape)
    found[order[:, 2], order[:, 3]] = np.arange(len(order), 0, -1)
    return found


def _kept(toy: Toy) -> Array:
    return acdc(toy.subject, toy.pairs, threshold=1e-3).circuit.within[0].astype(np.float64)


METHODS: Mapping[str, Callable[[Toy], Array]] = {
    "`eap`": lambda toy: _scores(eap(toy.subject, toy.pairs)),
    '`eap(method="clean-corrupted")`': lambda toy: _scores(eap(toy.subject, toy.pairs, method="clean-corrupted")),
    '`eap(method="ig-inputs")`': lambda toy: _scores(eap(toy.subject, toy.pairs, method="ig-inputs", steps=20)),
    '`eap(method="ig-activations")`': lambda toy: _scores(eap(toy.subject, toy.pairs, method="ig-activations", steps=20)),
    "`edge_patching`, noising": lambda toy: _scores(edge_patching(toy.subject, toy.pairs)),
    "`edge_patching`, denoising": lambda toy: _scores(edge_patching(toy.subject, toy.pairs, direction="denoising")),
    "`edges_in_company`": lambda toy: _scores(edges_in_company(toy.subject, toy.pairs)),
    "`optimise_edges`": lambda toy: _scores(optimise_edges(toy.subject, toy.pairs, sparsity=2.0, steps=150, seed=1)),
    '`optimise_edges(sampling="uniform")`': lambda toy: _scores(
        optimise_edges(toy.subject, toy.pairs, steps=150, seed=1, sampling="uniform", draws=16)
    ),
    "`acdc`": _kept,
    "`flow_routes`, `greedy`": _grown,
}


def found_by(method: str, toy: Toy) -> float:
    """AUROC of one method's scores on one planted circuit."""
    graph = graph_of(toy.subject)
    known = np.zeros(graph.exists.shape, dtype=bool)
    for edge in toy.edges:
        known[graph.index(edge)] = True
    return auroc(METHODS[method](toy)[graph.exists], known[graph.exists])


def table() -> str:
    """Every method on every planted circuit, as markdown."""
    toys = {name: plant(name) for name in TOYS}
    lines = []
    for method in METHODS:
        cells = [f"{found_by(method, toys[name]):.2f}" for name in TOYS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return HEADER + "\n".join(lines) + "\n"


def written() -> str:
    """The table as it stands in the page."""
    found = re.search(re.escape(HEADER) + r"(\|.*\n)+", PAGE.read_text(encoding="utf-8"))
    return found.group(0) if found else ""


def main() -> None:
    """Write the table into the page."""
    text, made = PAGE.read_text(encoding="utf-8"), table()
    PAGE.write_text(text.replace(written(), made), encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
