"""What a subject makes decides what is exchanged, searched and judged: answers to prompts, or pictures from requests.

The study itself, its measures and its page ask a `World` and do not know which it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mediant.core.site import Site
from mediant.report.page import Section
from mediant.runs.folder import Json
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.ground import Ground
from mediant.studies.mediation.measures import Tried
from mediant.studies.mediation.method import Entry
from mediant.studies.mediation.ready import Ready
from mediant.studies.mediation.searches import Search
from mediant.studies.mediation.subspaces import SubspaceSearch
from mediant.subject.open_model import OpenModel


class World(Protocol):
    """Answers, or pictures."""

    @property
    def definitions(self) -> Mapping[str, str]:
        """Of measures that mean something else here than the study says."""
        ...

    @property
    def outcome(self) -> str:
        """What comes with values, in sentences."""
        ...

    @property
    def limits(self) -> Sequence[str]:
        """What holds here only."""
        ...

    def load(self, config: Config, subject: Any) -> Data[Any]:
        """Sample or read the pairs, and refuse those that cannot be used."""
        ...

    def ready(self, config: Config, subject: Any, pairs: Sequence[Any], *, by: str) -> Ready:
        """A batch of pairs, made ready."""
        ...

    def begin(self, config: Config, subject: Any, data: Data[Any]) -> Site:
        """The site of the last rows, after refusing a subject that does not do the task."""
        ...

    def ground(self, config: Config, subject: Any, data: Data[Any], site: Site) -> Ground[Any, Any]:
        """All kinds of units."""
        ...

    def searches(self, kind: str, ground: Ground[Any, Any]) -> "list[Search | SubspaceSearch]":
        """Every search of a row."""
        ...

    def controls(self, ground: Ground[Any, Any]) -> Json:
        """Further controls: measure's name -> value per pair."""
        ...

    def by_place(self, ground: Ground[Any, Any]) -> Json:
        """What whole layers hold, place by place, for the page; empty where it is shown otherwise."""
        ...

    def shown(self, ground: Ground[Any, Any], entries: Sequence[Entry], tried: Tried) -> list[Section]:
        """What is exchanged and what comes of it, to be seen."""
        ...


def world_of(subject: OpenModel) -> World:
    """The one this subject belongs to."""
    from mediant.studies.mediation.answers import ANSWERS
    from mediant.studies.mediation.pictures import PICTURES
    from mediant.subject.generator import ImageGenerator

    return PICTURES if isinstance(subject, ImageGenerator) else ANSWERS
