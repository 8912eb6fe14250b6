"""The race: Mediant against TransformerLens, nnsight and pyvene, on one model, one machine and equal results.

make race
"""
