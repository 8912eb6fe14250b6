"""Requests as a batch of an image generator.

batch = encoded(flux, requests.generate("colour", 4))
"""

from collections.abc import Sequence

from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator
from mediant.tasks.requests import Request


def encoded(subject: ImageGenerator, requests: Sequence[Request], *, other_noise: int = 0) -> Batch:
    """Requests of one size, with the noise that their names give, or another."""
    first = requests[0]
    references = [request.references for request in requests] if first.references else []
    return subject.encode(
        [request.instruction for request in requests], references=references,
        seeds=[request.seed + other_noise for request in requests], height=first.height, width=first.width,
    )  # fmt: skip
