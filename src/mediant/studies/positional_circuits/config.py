"""Settings of the positional-circuits study. Torch-free."""

from typing import Literal

from pydantic import Field, model_validator

from mediant.studies.config import AskingConfig

NAME = "positional-circuits"
TITLE = "Which edges, at which positions"


class Config(AskingConfig):
    """Every setting with its unit and where the default comes from."""

    task: str = Field("ioi", description="A generated task by name, or a .jsonl file of your own pairs with named spans.")
    also: str | None = Field(None, description="A second generated task to run beside it; left out where `task` is a file.")
    spans: Literal["named", "saliency", "llm"] = Field(
        "named", description="Spans: those the prompts name, cut by saliency, or written by a language model (then an endpoint)."
    )
    endpoint: str | None = Field(
        None, description="For spans = llm: an OpenAI-compatible server, such as http://localhost:8000/v1."
    )
    schema_marks: bool = Field(True, description="Tell the language model which tokens are salient.")
    schema_rounds: int = Field(5, ge=1, description="Rounds without empty spans, and as many with them (5 and 5 in the paper).")
    schema_tokens: int = Field(1000, ge=16, description="Longest reply, in tokens (1000 in the paper).")
    metric: str | None = Field(None, description="Metric by name or file.py:function; default: the task's own.")
    n: int = Field(200, ge=8, description="Pairs on which circuits are run (500 in the paper).")
    n_discovery: int = Field(
        100, ge=6, description="Pairs on which edges are scored; never used to run circuits (500 in the paper)."
    )
    method: Literal["eap", "ig-inputs", "clean-corrupted"] = Field("eap", description="How edges are scored; the paper's is eap.")
    ablation: Literal["counterfactual", "mean", "zero"] = Field(
        "counterfactual", description="What cut edges carry: the other prompt's values, the mean over alike prompts, or nothing."
    )
    steps: int = Field(5, ge=1, description="Steps of integrated gradients, for ig-inputs.")
    threshold: float = Field(0.8, gt=0, le=1, description="Hard faithfulness at which circuits' sizes are compared.")
    frugal: bool = Field(
        False, description="Grow by score per concrete edge instead of by score as in the paper; for all rankings."
    )
    n_sizes: int = Field(7, ge=4, description="Circuit sizes on each curve, evenly spaced on the log axis.")
    bootstrap: int = Field(8, ge=2, description="Resamples of the discovery pairs behind stability.")
    n_positions: int = Field(24, ge=6, description="Discovery pairs behind the table of cancellation and over-estimation.")
    n_parts: int = Field(40, ge=1, description="Evaluation pairs on which nodes are taken out, for completeness and minimality.")
    knockouts: int = Field(
        8, ge=1, description="Random sets of a tenth of the circuit's nodes that are taken out of it and the model."
    )
    n_nodes: int = Field(20, ge=2, description="Nodes of the circuit that are taken out one by one.")
    batch_size: int = Field(20, ge=1, description="Pairs run together; one random circuit is drawn per batch.")

    @model_validator(mode="after")
    def _endpoint_for_llm(self) -> "Config":
        if (self.spans == "llm") != (self.endpoint is not None):
            raise ValueError(
                "spans = llm and endpoint go together: give both, such as --spans llm --endpoint http://localhost:8000/v1"
            )
        return self
