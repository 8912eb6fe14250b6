"""A model that can be looked into: loading, families, batches, servers."""

from mediant.subject.batch import Batch
from mediant.subject.load import load, wrap
from mediant.subject.subject import Subject

__all__ = ["Batch", "Subject", "load", "wrap"]
