"""Edge scores and circuits in the JSON format of the MIB circuit track (Mueller et al. 2025).

    write_mib("circuit.json", scores, circuit=order.circuit(500), d_model=576)
    scores, circuit = read_mib("circuit.json")

Nodes are "input", "a3.h2", "m3" and "logits", edges "a0.h1->a3.h2<q>". There a *positive* score is an edge that helps: the sign
is turned on the way in and out. Positions have no place in the format; scores by span are summed.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mediant.core.circuit import Circuit
from mediant.core.edge import CircuitEdge
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import MediantError, RunError, complaints, nearest
from mediant.core.graph import CircuitGraph
from mediant.core.site import Site

SHOWN = 5
_EDGE = re.compile(r"^(input|a\d+\.h\d+|m\d+)->(logits|m\d+|a\d+\.h\d+<[qkv]>)$")


def write_mib(path: Path | str, scores: EdgeScores, *, circuit: Circuit | None = None, d_model: int) -> None:
    """Write scores, and which edges are in a circuit (all, when none is given).

    Raises:
        MediantError: a circuit by position, which the format cannot hold.
    """
    if circuit is not None and len(circuit.spans) != 1:
        raise MediantError(
            f"the format has no positions, but this circuit has {len(circuit.spans)} spans; grow one from scores.summed()"
        )
    graph, table = scores.graph, scores.summed().within[0]
    kept = graph.exists if circuit is None else circuit.within[0]
    edges = {
        edge_name(graph.edge(int(t), int(s))): {"score": -float(table[t, s]), "in_graph": bool(kept[t, s])}
        for t, s in np.argwhere(graph.exists)
    }
    live = {name for text, e in edges.items() if e["in_graph"] for name in _ends(text)}
    names = ["input", *(node_name(site) for site in graph.sources[1:]), "logits"]
    cfg = {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel, "d_model": d_model,
    }  # fmt: skip
    content = {"cfg": cfg, "nodes": {name: {"in_graph": name in live} for name in names}, "edges": edges}
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_mib(path: Path | str) -> tuple[EdgeScores, Circuit]:
    """Scores and circuit of a file.

    Raises:
        RunError: the file is missing or broken; the first wrong edges are named with what is wrong.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        cfg, edges = content["cfg"], content["edges"]
        graph = CircuitGraph(int(cfg["n_layers"]), int(cfg["n_heads"]), bool(cfg["parallel_attn_mlp"]))
        if not isinstance(edges, dict):
            raise TypeError(f"'edges' must be an object, got {type(edges).__name__}")
    except KeyError as error:
        raise RunError(f"{path} is no MIB circuit: it lacks {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is no MIB circuit: {complaints(error)}") from error
    scores = EdgeScores(graph, ("all",), np.zeros((1, graph.n_targets, graph.n_sources)), method="MIB file")
    circuit, wrong = Circuit.empty(graph, crossing=False), []
    for name, entry in edges.items():
        try:
            place = graph.index(_edge(name))
            scores.within[0][place], circuit.within[0][place] = _entry(entry)
        except MediantError as error:
            wrong.append(f"{name!r}: {error}")
    if wrong:
        more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
        raise RunError(f"{path}: {len(wrong)} of {len(edges)} edges are wrong{more}:\n  " + "\n  ".join(wrong[:SHOWN]))
    if len(edges) != graph.n_edges:
        size = f"{graph.n_layers} layers and {graph.n_heads} heads"
        raise RunError(f"{path} holds {len(edges)} edges, a model with {size} has {graph.n_edges}")
    return scores, circuit


def node_name(site: Site) -> str:
    """The format's name of a node."""
    if site.kind in ("embed", "final_resid"):
        return "input" if site.kind == "embed" else "logits"
    return f"m{site.layer}" if site.head is None else f"a{site.layer}.h{site.head}"


def edge_name(edge: CircuitEdge) -> str:
    """The format's name of an edge."""
    port = f"<{edge.target.kind}>" if edge.target.head is not None else ""
    return f"{node_name(edge.source)}->{node_name(edge.target)}{port}"


def _ends(name: str) -> tuple[str, str]:
    source, target = name.split("->")
    return source, target.partition("<")[0]


def _edge(name: str) -> CircuitEdge:
    found = _EDGE.match(name)
    if not found:
        close = nearest(name.partition("->")[2], ["logits"])
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise MediantError("expected SOURCE->TARGET as in 'a0.h1->a3.h2<q>' or 'm1->logits'" + hint)
    source, target = found.groups()
    return CircuitEdge(_site(source, "embed", "mlp_out", "head_result"), _site(target, "final_resid", "mlp_in", target[-2]))


def _site(text: str, outer: str, mlp: str, head: str) -> Site:
    if text in ("input", "logits"):
        return Site(outer)
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    return Site(mlp, numbers[0]) if text.startswith("m") else Site(head, numbers[0], numbers[1])


def _entry(entry: Any) -> tuple[float, bool]:
    if not isinstance(entry, dict) or not isinstance(entry.get("in_graph"), bool):
        raise MediantError(f"expected {{'score': number, 'in_graph': true or false}}, got {entry!r}")
    score = entry.get("score", 0.0)
    if score is None:
        score = 0.0
    if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
        raise MediantError(f"expected a finite score, got {score!r}")
    return -float(score), entry["in_graph"]
