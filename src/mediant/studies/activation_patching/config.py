"""Settings of the activation-patching study. Torch-free."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mediant.studies.config import StudyConfig

NAME = "activation-patching"
TITLE = "Which layers, heads and positions carry the answer"


class Config(StudyConfig):
    """Every setting with its unit and where the default comes from."""

    task: str = Field("ioi", description="A generated task by name, or a .jsonl file of your own pairs.")
    metric: str | None = Field(
        None, description="Metric by name or file.py:function; default: the task's own (logit_diff, or logprob_diff for files)."
    )
    n: int = Field(200, ge=8, description="Pairs on which the chosen heads are confirmed, and as many from held-out templates.")
    n_discovery: int = Field(20, ge=2, description="Pairs on which heads are ranked; never used for confirmation.")
    n_map: int = Field(6, ge=1, description="Pairs behind the layer x position map; they share one sentence frame.")
    top_k: int = Field(
        10,
        ge=1,
        description="Heads confirmed together (10, as many as named for IOI by Wang et al. 2022, table 1, in round numbers).",
    )
    rank_by: Literal["absolute", "most_negative"] = Field(
        "absolute", description="Order of heads: by |effect|, or helpful ones only."
    )
    random_draws: int = Field(10, ge=2, description="Random head sets behind the controls of the joint effect.")
    control_draws: int = Field(3, ge=1, description="Head sets behind the controls of sufficiency, generality and selectivity.")
    n_texts: int = Field(200, ge=4, description="Unrelated sentences behind selectivity.")
    batch_size: int = Field(25, ge=1, description="Pairs run together. Part of the result's last digits, so part of the config.")

    @model_validator(mode="after")
    def _enough_draws(self) -> Self:
        if self.control_draws > self.random_draws:
            raise ValueError(f"control_draws ({self.control_draws}) are taken from the random_draws ({self.random_draws})")
        return self
