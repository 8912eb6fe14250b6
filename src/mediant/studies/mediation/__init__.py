"""The matrix: every kind of mediator, every way of searching, one task, equal terms.

Mueller et al. (2024, arXiv 2408.01416) sort interpretability by the mediators a study considers (layers, heads, neurons,
edges, subspaces, dictionary features) and by how it searches among them, and ask for comparisons that hold all else equal. Each
cell here is a search that was run: on the same pairs of prompts, judged by the same exchange on pairs it never saw, with random
mediators of the same number beside it.

    mediant run mediation --preset bundled
    mediant run mediation --model FOLDER --task agreement
    mediant run mediation --subject drawn-flux

It does not show which mediator is *right*: coarse ones are faithful because they hand on everything, and the card says so by
what else they hand on. Nor are scores between rows free of choices: a share of all heads and the same share of all edges are not
equally much.
"""
