"""Turns of a chat, replies, and what every model that can only be asked has in common.

>>> Message("user", "Capital of France?").wire()
{'role': 'user', 'content': 'Capital of France?'}
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from mediant.core.errors import EndpointError, unknown

Role = Literal["system", "user", "assistant"]
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        images: PNG or JPEG files, shown before the text to models that see.

    Raises:
        UnknownName: the role is none of `Role`.
    """

    role: Role
    content: str
    images: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise unknown("role", self.role, get_args(Role))

    def wire(self) -> dict[str, Any]:
        """The turn as the OpenAI protocol has it; a turn without images stays plain text, as all servers take it."""
        if not self.images:
            return {"role": self.role, "content": self.content}
        parts = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in self.images]
        return {"role": self.role, "content": [*parts, {"type": "text", "text": self.content}]}


@dataclass(frozen=True)
class Reply:
    """What came back; counts are in the server's tokens, None where it gave none.

    Attributes:
        finish_reason: the server's word (`stop`, `length`, ...), empty where it gave none.
        model: the name the server answered under, which may differ from the one asked for.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str


@runtime_checkable
class Endpoint(Protocol):
    """A model that can only be asked."""

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        prefill: str | None = None,
    ) -> Reply:
        """The assistant's next turn; `prefill` is its beginning, and the reply is what follows that."""

    def complete(
        self, prompt: str, *, max_tokens: int = 256, temperature: float = 0.0, seed: int | None = None, stop: Sequence[str] = ()
    ) -> Reply:
        """The text that follows `prompt`, without a chat template."""


def turns_of(messages: Sequence[Message], prefill: str | None) -> list[Message]:
    """The messages, and the prefill as a last assistant turn; an empty prefill is none."""
    if not messages:
        raise EndpointError("a chat needs at least one message, got none")
    return [*messages, Message("assistant", prefill)] if prefill else list(messages)


def sampling(max_tokens: int, temperature: float, seed: int | None, stop: Sequence[str]) -> dict[str, Any]:
    """Sampling fields of a request body; unset ones are left out, since some servers refuse null."""
    if max_tokens < 1 or not 0 <= temperature < math.inf:
        raise EndpointError(f"expected max_tokens >= 1 and a finite temperature >= 0, got {max_tokens} and {temperature}")
    stops = [stop] if isinstance(stop, str) else list(stop)
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    return body | ({} if seed is None else {"seed": seed}) | ({"stop": stops} if stops else {})


def _data_uri(image: bytes) -> str:
    kind = "jpeg" if image.startswith(_JPEG) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
