"""Positional circuits: which edges, at which positions?

Haklay, Orgad, Bau, Mueller and Belinkov (ACL 2025, arXiv 2502.04577) score every edge of a model's computation graph at
every position, also the edges that attention draws between positions, and sum them over named spans. Their circuits
reach the whole model's answers with far fewer edges than circuits that hold at all positions alike.

    mediant run positional-circuits --preset bundled
    mediant run positional-circuits --model FOLDER --task pairs.jsonl

It does not show that a circuit is the only one, nor what its parts mean: edges are chosen by a first-order estimate, against
one counterfactual, on prompts whose spans stand in one order.
"""
