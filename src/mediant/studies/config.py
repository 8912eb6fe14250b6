"""What every study's config has: the model, the seed, where and in which precision it runs."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class StudyConfig(BaseModel):
    """Frozen, validated, torch-free; options of the command line are generated from its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    # Whether the study is about a model that makes pictures (True), one that writes (False), or either (None).
    makes_pictures: ClassVar[bool | None] = False

    model: str = Field("smollm2-135m", description="Model under study: catalogue name, folder, .gguf file or hub id.")
    seed: int = Field(0, ge=0, description="Seed of sampling, random controls and bootstraps.")
    device: str | None = Field(None, description="Torch device; default: cuda when there is one, else cpu.")
    dtype: str = Field(
        "float32", description="Weights' type: float32, bfloat16 or float16. Small effects drown in rounding below float32."
    )


class AskingConfig(StudyConfig):
    """The settings of a study that may ask a model behind a server."""

    endpoint: str | None = Field(None, description="An OpenAI-compatible server, such as http://localhost:8000/v1.")
    endpoint_model: str = Field("default", description="The model to ask there.")
    endpoint_key: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key; never the key itself.")
