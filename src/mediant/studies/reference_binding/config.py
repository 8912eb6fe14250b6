"""Settings of the reference-binding study. Torch-free."""

from typing import ClassVar, Literal

from pydantic import Field

from mediant.studies.config import AskingConfig

NAME = "reference-binding"
TITLE = "How a reference image reaches the picture"


class Config(AskingConfig):
    """Every setting with its unit and where the default comes from."""

    makes_pictures: ClassVar[bool] = True

    model: str = Field("drawn-flux", description="An image generator: catalogue name or pipeline folder.")
    planted: str | None = Field(
        None, description="A second generator whose routes are known, for the same measures with the suffix _planted."
    )
    judge: str = Field("drawn-judge", description="What tells style and identity: catalogue name or folder of a judge.")
    tasks: str | None = Field(
        None,
        description="Instead of drawn requests: a folder of task files in the published format (*.jsonl), or a set that `mediant "
        "data fetch` gets (emoji).",
    )
    properties: tuple[Literal["colour", "style", "identity"], ...] = Field(
        ("colour", "style", "identity"), min_length=1,
        description="What is looked for. Of tasks from a folder only colour can be told without --endpoint.",
    )  # fmt: skip
    size: int | None = Field(
        None, ge=64, multiple_of=16,
        description="Side of pictures asked for, in pixels; default: 64 for drawn requests, otherwise what the tasks say.",
    )  # fmt: skip
    n: int = Field(200, ge=2, description="Requests, and pairs of them, tried per property (320 to 450 in the paper).")
    n_kept: int = Field(
        100, ge=1,
        description="Of those tried, interventions are made on the first so many whose untouched picture shows its reference's "
        "property, while an empty run does not.",
    )  # fmt: skip
    n_validation: int = Field(16, ge=2, description="Requests on which blocks, ways of the lens and heads are chosen.")
    n_text: int = Field(160, ge=2, description="Requests without a reference, for how well the subject draws at all.")
    steps: int = Field(4, ge=1, description="Steps from noise to picture (4 in the paper).")
    lens_steps: int = Field(1, ge=1, description="Steps of the run that the lens reads (1 in the paper).")
    padding: Literal["beside", "padding"] = Field(
        "beside",
        description="What counts as padding: every slot beside the instruction (the paper), or true padding alone, without the "
        "chat template.",
    )
    head_share: float = Field(0.15, gt=0, le=1, description="Share of heads that a head search may choose.")
    window: int = Field(3, ge=1, description="Blocks in which repair strengthens attention (3 in the paper's repository).")
    n_flow: int = Field(20, ge=1, description="Requests on which attention between text and picture is cut, for the diagram.")
    n_dose: int = Field(30, ge=1, description="Pairs whose instruction is lengthened (48 or 50 in the paper's repository).")
    dose: tuple[float, ...] = Field(
        (1.0, 0.67, 0.33, 0.0), description="Shares of its padding that an instruction is left, in the padding dose-response."
    )
    repair: tuple[float, ...] = Field(
        (1.0, 2.0, 4.0), min_length=1, description="What repair adds to logits, in nats (1, 2 and 4 in the paper's repository)."
    )
    n_repair: int = Field(
        20,
        ge=1,
        description="Of requests tried that failed, and of those that did not, how many are tried again with more attention.",
    )
    batch: int = Field(10, ge=1, description="Pictures made at a time.")
    n_shown: int = Field(6, ge=1, description="Requests per property whose pictures the page shows.")
