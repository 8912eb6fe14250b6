"""Settings of the mediation study. Torch-free."""

from itertools import pairwise
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mediant.studies.config import StudyConfig

NAME = "mediation"
TITLE = "Which kind of mediator, found by which search, carries the answer"
Kind = Literal["layer", "sublayer", "head", "neuron", "edge", "coordinate", "axis", "feature", "subspace"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Config(StudyConfig):
    """Every setting with its unit and where the default comes from."""

    makes_pictures: ClassVar[bool | None] = None

    task: str | None = Field(
        None,
        description="A generated task by name, or a .jsonl file of your own pairs; default: ioi; panels for a subject with eyes; "
        "colour for one that makes pictures.",
    )
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1, description="Rows of the matrix: kinds of units.")
    variable: str | None = Field(
        None, description="Variable of the pairs that clean and counterfactual differ in, for probes; default: the task's own."
    )
    n: int = Field(100, ge=8, description="Pairs on which every cell is judged, and as many of held-out wording.")
    n_discovery: int = Field(32, ge=4, description="Pairs that searches see; half of them each for stability.")
    n_validation: int = Field(25, ge=4, description="Pairs on which the size that suffices is chosen.")
    n_texts: int = Field(100, ge=4, description="Pairs of unrelated sentences behind selectivity.")
    share: float = Field(
        0.03,
        gt=0,
        lt=1,
        description="Share of a kind's units at which cells are compared; at one site, of its dimensions.",
    )
    shares: tuple[float, ...] = Field(
        (0.003, 0.01, 0.03, 0.1, 0.3), min_length=2, description="Shares of the units behind a cell's curve, rising."
    )
    enough: float = Field(0.8, gt=0, le=1, description="Share of the total effect at which a set of units suffices.")
    site: str | None = Field(
        None, description="Stream whose coordinates, axes, features and subspaces are searched, at the last token; default: the "
        "first layer whose stream there carries half of the effect on discovery pairs."
    )  # fmt: skip
    dictionary: str | None = Field(None, description="Folder of a sparse dictionary in SAELens' format; default: one is learned.")
    n_axes: int = Field(48, ge=2, description="Principal axes of the site, at most one less than the prompts searches see.")
    n_features: int = Field(1152, ge=8, description="Features of the dictionary that is learned.")
    active: int = Field(16, ge=1, description="Features active per token in the dictionary that is learned.")
    dictionary_steps: int = Field(600, ge=1, description="Updates of the dictionary that is learned, 256 tokens each.")
    epochs: int = Field(12, ge=1, description="Rounds over the discovery pairs of what is learned: masks and rotations.")
    edge_steps: int = Field(40, ge=1, description="Updates of gates on edges, 8 pairs each.")
    gradient_steps: int = Field(5, ge=2, description="Points of integrated gradients (5 in MIB).")
    n_exact: int = Field(5000, ge=0, description="At most so many neurons are exchanged one by one.")
    acdc_edges: int = Field(
        100, ge=0, description="Edges, strongest by attribution, that ACDC tries one by one; 0: it is left out."
    )
    random_draws: int = Field(5, ge=2, description="Random sets of units behind each row's controls.")
    steps: int = Field(
        1,
        ge=1,
        description="Of a subject that makes pictures, steps from noise to picture; with one, no exchange answers to what an "
        "earlier step has made of it.",
    )
    batch_size: int = Field(25, ge=1, description="Pairs run together. Part of the result's last digits, so part of the config.")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(b <= a for a, b in pairwise(self.shares)) or not 0 < self.shares[0] < self.shares[-1] < 1:
            raise ValueError(f"shares must rise between 0 and 1, got {self.shares}")
        return self
