"""Run folders and the engines that fill them."""

from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Manifest, RunFolder

__all__ = ["LocalEngine", "Manifest", "RunFolder", "WorkItem"]
