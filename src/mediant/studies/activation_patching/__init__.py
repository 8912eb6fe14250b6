"""Activation patching: which layers, heads and positions carry an answer?

Vig et al. (2020), Meng et al. (2022) and Wang et al. (2022) give one part of a model the value it has on a
counterfactual prompt and watch the answer change. On indirect object identification ("When Mary and John went to
the store, John gave a drink to" -> Mary) Wang et al. found that a few late heads of GPT-2 small move the name.

    mediant run activation-patching --preset bundled
    mediant run activation-patching --model FOLDER --task pairs.jsonl

It does not show *how* a head does its work, nor that the parts found are the only ones: redundant parts hide
each other when patched one at a time.
"""
