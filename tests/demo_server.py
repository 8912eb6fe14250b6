"""Serve the gaze demo on a tiny random model until standard input ends; prints the address."""

import sys

from eyes import vision_subject
from mediant.core import Site
from mediant.core.ranking import Ranking, Scored
from mediant.studies.catalogue import study
from mediant.studies.gaze_heads import demo

sites = [Site("head_z", layer, head) for layer in range(3) for head in range(4)]
ranking = Ranking("head", [Scored(str(site), 1.0 - i / 20) for i, site in enumerate(sites)], rule="most_positive")
config = study("gaze-heads").configure("smoke", {"panels": 2})


def ready(address: str) -> None:
    print(address, flush=True)
    sys.stdin.read()


demo.serve(vision_subject(), config, ranking=ranking, ready=ready)
