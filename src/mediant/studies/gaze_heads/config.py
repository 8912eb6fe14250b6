"""Settings of the gaze-heads study. Torch-free."""

from typing import Literal

from pydantic import Field, model_validator

from mediant.studies.config import AskingConfig

NAME = "gaze-heads"
TITLE = "Which heads look at what is described"


class Config(AskingConfig):
    """Every setting with its unit and where the default comes from."""

    model: str = Field("comic-vlm", description="A model with eyes: catalogue name, folder or hub id.")
    data: str = Field(
        "drawn",
        description="Strips: `drawn` by this package, a set of `mediant data fetch` by name, or a folder of "
        "comic<ID>/p1.png ... or of COMICS pages.",
    )
    captions: Literal["given", "own"] = Field(
        "given",
        description="What counts as right: captions and names that come with the pictures, or what the model itself says about "
        "each panel or thing cut out and shown alone. Strips without captions always have the model's own.",
    )
    height: int = Field(256, ge=16, description="Height to which panels of a folder or fetched set are scaled, in pixels.")
    split: Literal["heldout", "main"] = Field(
        "heldout", description="Test strips of combinations never drawn for training, or of others; for drawn strips."
    )
    panels: int = Field(6, ge=2, le=10, description="Panels per strip (6 in the paper).")
    n: int = Field(40, ge=2, description="Strips on which steering is tested; each gives as many answers as it has panels.")
    n_discovery: int = Field(40, ge=2, description="Strips on which heads are ranked (500 in the paper).")
    n_validation: int = Field(12, ge=1, description="Strips on which K and beta are chosen; never used again.")
    question_panel: str = Field(
        "What happens in the {k} panel?", description="A question that settles the panel; {k} is its ordinal."
    )
    question_this: str = Field(
        "What is happening in this panel?", description="A question that leaves the panel open, for steering."
    )
    question_describe: str = Field("Describe this panel.", description="The open question of static narration.")
    question_narrate: str = Field(
        "Describe the panels in any order.", description="The request that dynamic narration steers, sentence by sentence."
    )
    question_here: str = Field("What is here?", description="The open question about a region of a picture.")
    score: Literal["mass", "selectivity"] = Field(
        "mass", description="Ranks heads by attention on the panel asked for (the paper), or its share of image attention."
    )
    ks: tuple[int, ...] = Field((1, 2, 3, 4, 6, 8, 10, 12, 16), description="Numbers of heads on the sweep; 0 stands for all.")
    largest_share: float = Field(
        0.15, gt=0, le=1, description="K is chosen among shares of all heads up to this (8.7 % in the paper)."
    )
    betas: tuple[float, ...] = Field((1e4,), description="Biases in logits to choose from (10,000 in the paper).")
    mode: Literal["boost_suppress", "boost", "suppress_image", "suppress_all", "max_suppress_all"] = Field(
        "boost_suppress", description="What is suppressed besides boosting the target; the paper's is boost_suppress."
    )
    answer_tokens: int = Field(15, ge=1, description="Longest answer, in tokens (15 in the paper).")
    narration_tokens: int = Field(100, ge=1, description="Longest static narration, in tokens (100 in the paper).")
    segment_tokens: int = Field(
        50, ge=1, description="Tokens before dynamic narration turns to the next panel (50 in the paper)."
    )
    draws: int = Field(5, ge=1, description="Random head sets behind each random control.")
    n_dynamic: int = Field(24, ge=0, description="Test strips narrated with a schedule of panels; 0 leaves the part out.")
    n_carriers: int = Field(
        12, ge=0, description="Test strips on which is patched what carries the panel asked for; 0 leaves the part out."
    )
    twin: str | None = Field(
        None, description="A second model to rank, choose and redirect beside the first: catalogue name or folder."
    )
    n_regions: int = Field(40, ge=0, description="Pictures whose regions are looked at; 0 leaves the part out.")
    regions: str = Field(
        "drawn",
        description="Pictures with known boxes: `drawn`, a set of `mediant data fetch` by name, or a COCO-style folder "
        "(images, annotations.json).",
    )
    endpoint: str | None = Field(
        None, description="An OpenAI-compatible server with a model that sees, to judge steered answers besides the words."
    )
    n_shown: int = Field(6, ge=1, description="Strips that the page shows in full.")
    batch_size: int = Field(36, ge=1, description="Prompts run together.")

    @model_validator(mode="after")
    def _question_asks_for_a_panel(self) -> "Config":
        if "{k}" not in self.question_panel:
            raise ValueError(f"question_panel needs {{k}} where the panel's ordinal goes, got {self.question_panel!r}")
        if not self.ks or min(self.ks) < 0:
            raise ValueError(f"ks are numbers of heads from 1 on, or 0 for all, got {self.ks}")
        return self
