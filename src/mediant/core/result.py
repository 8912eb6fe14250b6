"""What a study reports: measures with intervals and definitions, limits and provenance.

>>> m = Measure(value=0.9, n=200, ci95=(0.86, 0.94), definition="share of items answered right")
>>> m.model_dump(exclude_none=True)["n"]
200

`result.json` follows `SCHEMA`; `Result.json_schema()` publishes it. A value is null only with a reason.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mediant.core.errors import RunError, complaints

SCHEMA = "mediant/result/1"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Measure(BaseModel):
    """One number with what is needed to believe it."""

    # The published schema says it too: a number with its interval, or a reason.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "anyOf": [
                {"properties": {"value": {"type": "number"}, "ci95": {"type": "array"}}, "required": ["value", "ci95"]},
                {"properties": {"reason": {"type": "string", "minLength": 1}}, "required": ["reason"]},
            ]
        },
    )

    value: Finite | None = Field(description="The estimate; null only where `reason` says why it cannot be given.")
    n: int = Field(ge=0, description="Number of items behind the estimate.")
    ci95: tuple[Finite, Finite] | None = Field(None, description="95 % interval (percentile bootstrap unless said otherwise).")
    definition: str = Field(min_length=1, description="What is measured, in one sentence, with its unit.")
    control: str | None = Field(None, description="Name of the measure that is this one's control.")
    reason: str | None = Field(None, description="Why the value is null, or what a reader must know about it.")

    @model_validator(mode="after")
    def _null_needs_reason(self) -> Self:
        if self.value is None and not self.reason:
            raise ValueError("a measure without a value needs a reason")
        if self.value is not None and self.ci95 is None and not self.reason:
            raise ValueError("a measure without an interval needs a reason")
        if self.ci95 is not None and (self.value is None or self.ci95[0] > self.ci95[1]):
            raise ValueError(f"an interval belongs to a value and runs from low to high, got {self.ci95}")
        return self


class Result(BaseModel):
    """A study's outcome, as stored in `result.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["mediant/result/1"] = Field(
        default="mediant/result/1", validation_alias="schema", serialization_alias="schema"
    )
    study: str
    preset: str
    measures: dict[str, Measure]
    limits: list[str] = Field(min_length=1, description="What this result does not show.")
    provenance: dict[str, Any] = Field(description="Model and its hash, seed, versions, device, dtype, changed fields.")

    @model_validator(mode="after")
    def _plain_provenance(self) -> Self:
        try:
            json.dumps(self.provenance, allow_nan=False)
        except TypeError as error:
            raise ValueError(f"provenance must be plain JSON: {error}") from error
        return self

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The published JSON schema of `result.json`."""
        published = cls.model_json_schema(by_alias=True)
        published["required"] = ["schema", *published["required"]]
        return published

    def to_json(self) -> str:
        """Deterministic JSON: the same result gives the same bytes."""
        return self.model_dump_json(by_alias=True, indent=1, exclude_none=False) + "\n"

    def save(self, path: Path | str) -> None:
        """Write `result.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Result":
        """Read and validate a `result.json`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            found = cls.model_validate_json(text)
            if "schema" not in json.loads(text):
                raise ValueError(f"it names no schema, expected {SCHEMA}")
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not a result of this version: {complaints(error)}") from error
        return found
