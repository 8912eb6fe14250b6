"""A model behind an OpenAI-compatible server, and a scripted stand-in with the same face.

>>> endpoint = ScriptedEndpoint(["Paris.", lambda messages: messages[-1].content.upper()])
>>> endpoint.chat([Message("user", "Capital of France?")]).text
'Paris.'
>>> endpoint.complete("and of Italy").text
'AND OF ITALY'

Nothing inside such a model can be read or edited: it serves as judge, as writer of prompts, or as a
subject that is only asked. What it says is text from outside: data to store and to score, never to run.
"""

import ipaddress
import json
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mediant.core.errors import EndpointError, unknown
from mediant.subject.chat import Endpoint, Message, Reply, sampling, turns_of

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Call", "Endpoint", "Message", "OpenAIEndpoint", "Reply", "ScriptedEndpoint"]
PLACEHOLDER_KEY = "no-key"
EXCERPT_LENGTH = 300


@dataclass(frozen=True)
class OpenAIEndpoint:
    """A server that speaks the OpenAI protocol: vLLM, llama.cpp, Ollama, OpenAI itself.

    Connection errors and statuses 408, 409, 429 and 5xx are tried again with growing pauses, or after
    the pause the server asks for. The key is looked up for each request and kept nowhere.

    Attributes:
        base_url: where `/chat/completions` hangs, such as `http://localhost:8000/v1`.
        api_key_variable: *name* of the environment variable that holds the key; on loopback it may be unset.
        timeout_s: longest wait, in seconds, for a connection and for the next bytes of an answer.
        retries: requests after the first one.

    Raises:
        EndpointError: a field cannot be used; a request could not be answered.
        UnknownName: the server lists its models, and `model` is not among them.
    """

    base_url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    retries: int = 4

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        # The value is not repeated: who errs here has most likely pasted the key.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_variable):
            raise EndpointError("api_key_variable names an environment variable in capitals, such as OPENAI_API_KEY; not the key")
        if not 0 < self.timeout_s < math.inf or self.retries < 0:
            raise EndpointError(f"expected timeout_s > 0 and retries >= 0, got {self.timeout_s} and {self.retries}")

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
        """The assistant's next turn; `prefill` is its beginning, and the reply is what follows that.

        A prefill needs a server that knows vLLM's `continue_final_message`.
        """
        body = {"model": self.model} | sampling(max_tokens, temperature, seed, stop)
        body["messages"] = [turn.wire() for turn in turns_of(messages, prefill)]
        if prefill:
            body["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
        answer = self._ask("chat/completions", lambda c: c.chat.completions.with_raw_response.create(**body).http_response)
        return self._reply(answer, "choices", 0, "message", "content")

    def complete(
        self, prompt: str, *, max_tokens: int = 256, temperature: float = 0.0, seed: int | None = None, stop: Sequence[str] = ()
    ) -> Reply:
        """The text that follows `prompt`, without a chat template."""
        body = {"model": self.model, "prompt": prompt} | sampling(max_tokens, temperature, seed, stop)
        answer = self._ask("completions", lambda c: c.completions.with_raw_response.create(**body).http_response)
        return self._reply(answer, "choices", 0, "text")

    def models(self) -> list[str]:
        """Names of the models the server offers, whichever one this endpoint asks for."""
        answer = self._ask("models", lambda c: c.models.with_raw_response.list().http_response)
        entries = _at(answer.data, "data")
        names = [_text(_at(entry, "id")) for entry in entries] if isinstance(entries, list) else [None]
        known = [name for name in names if name is not None]
        if len(known) < len(names):
            raise answer.malformed("data[].id")
        return known

    def _ask(self, path: str, request: "Callable[[OpenAI], Any]") -> "_Answer":
        """A good answer, or an error that names the model where that is what the server did not know."""
        answer = self._send(path, request)
        if answer.status in (400, 404) and path != "models":
            self._check_model()
        if not 200 <= answer.status < 300:
            raise answer.refused(self.api_key_variable)
        return answer

    def _check_model(self) -> None:
        try:
            names = replace(self, retries=0).models()
        except EndpointError:
            return
        if names and self.model not in names:
            raise unknown("model", self.model, names, note=f"(at {self.base_url})")

    def _send(self, path: str, request: "Callable[[OpenAI], Any]") -> "_Answer":
        """One request with its retries.

        Errors are raised after their `except` block: the client's own, which hold the request and its
        headers, must not ride along as the context of ours.
        """
        openai, key, url = _client_library(), self._key(), f"{self.base_url.rstrip('/')}/{path}"
        # A proxy from the environment could not reach this machine's loopback, and would see the key.
        http_client = openai.DefaultHttpxClient(trust_env=False, verify=_tls()) if _is_loopback(self.base_url) else None
        client = openai.OpenAI(
            api_key=key, base_url=self.base_url, timeout=self.timeout_s, max_retries=self.retries, http_client=http_client
        )
        try:
            with client:
                response = request(client)
                return _Answer(url, response.status_code, response.text, key)
        except openai.APIStatusError as error:
            return _Answer(url, error.status_code, error.response.text, key)
        except openai.APITimeoutError:
            failure = f"{url} did not answer within {self.timeout_s} s (retries: {self.retries}); raise timeout_s"
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            failure = f"cannot reach {url} ({cause}, retries: {self.retries}); is the server running there?"
        except UnicodeError as error:
            failure = f"a request to {url} must be valid Unicode text, and its host a valid name: {error}"
        raise EndpointError(failure)

    def _key(self) -> str:
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key and _is_loopback(self.base_url):
            return PLACEHOLDER_KEY
        if not key:
            raise EndpointError(f"{self.base_url} needs a key; set the environment variable {self.api_key_variable} to it")
        # The HTTP library would quote an illegal header value, that is the key, in its error.
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise EndpointError(f"the key in {self.api_key_variable} holds characters no header may have; set it again")
        return key

    def _reply(self, answer: "_Answer", *path: str | int) -> Reply:
        data = answer.data
        text = _text(_at(data, *path))
        if text is None:
            raise answer.malformed("".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)[1:])
        reason = _text(_at(data, "choices", 0, "finish_reason")) or ""
        counts = [_count(_at(data, "usage", name)) for name in ("prompt_tokens", "completion_tokens")]
        return Reply(text, reason, counts[0], counts[1], _text(_at(data, "model")) or self.model)


@dataclass(frozen=True)
class _Answer:
    """A server's words, and the key that must not be among those shown."""

    url: str
    status: int
    body: str
    key: str = field(repr=False)

    @property
    def data(self) -> object:
        """The decoded body, None where it is not JSON (or nested too deeply to be meant well)."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def excerpt(self) -> str:
        """Quoted, so that control characters do not reach a terminal; without the key, should the server echo it."""
        message = _at(self.data, "error", "message")
        words = message if isinstance(message, str) else self.body
        words = words if self.key == PLACEHOLDER_KEY else words.replace(self.key, "***")
        return repr(words[:EXCERPT_LENGTH] + ("..." if len(words) > EXCERPT_LENGTH else ""))

    def malformed(self, place: str) -> EndpointError:
        """The error for a body without text at `place`."""
        return EndpointError(
            f"{self.url} answered with status {self.status}: expected JSON with text at {place}, got {self.excerpt}"
        )

    def refused(self, variable: str) -> EndpointError:
        """The error for a status other than success."""
        wrong_key = f"; check the key in the environment variable {variable}"
        wrong_path = "; check the path of base_url, which often ends in /v1"
        hint = {401: wrong_key, 403: wrong_key, 404: wrong_path}.get(self.status, "")
        return EndpointError(f"{self.url} answered with status {self.status}, expected 200: {self.excerpt}{hint}")


@dataclass(frozen=True)
class Call:
    """What a `ScriptedEndpoint` was asked: `messages` or `prompt`, and `options` as a server would receive them."""

    messages: tuple[Message, ...] | None
    prompt: str | None
    options: Mapping[str, object]
    prefill: str | None = None


Scripted = str | Exception | Callable[[list[Message]], str]


@dataclass
class ScriptedEndpoint:
    """Gives prepared replies in order: texts, exceptions to raise, or functions of the turns seen.

    A function sees a prompt as one user turn, and a prefill as a last assistant turn. Replies are
    given as they stand: neither `stop` nor `max_tokens` cuts them.

    Attributes:
        loop: start again after the last reply, instead of refusing.
        calls: what was asked, in order, also where the reply was an exception.

    Raises:
        EndpointError: more is asked than was scripted.
    """

    replies: Sequence[Scripted]
    loop: bool = False
    calls: list[Call] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.replies, str):
            raise EndpointError(f"expected a list of replies, got the text {self.replies!r}; put it in brackets")

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
        """The next reply of the script."""
        turns = turns_of(messages, prefill)
        return self._next(turns, Call(tuple(messages), None, sampling(max_tokens, temperature, seed, stop), prefill))

    def complete(
        self, prompt: str, *, max_tokens: int = 256, temperature: float = 0.0, seed: int | None = None, stop: Sequence[str] = ()
    ) -> Reply:
        """The next reply of the script."""
        return self._next([Message("user", prompt)], Call(None, prompt, sampling(max_tokens, temperature, seed, stop)))

    def _next(self, turns: list[Message], call: Call) -> Reply:
        index, count = len(self.calls), len(self.replies)
        self.calls.append(call)
        if index >= count and not (self.loop and count):
            raise EndpointError(f"call {index + 1} of a scripted endpoint with {count} replies; script more, or set loop=True")
        scripted = self.replies[index % count]
        if isinstance(scripted, Exception):
            raise scripted
        return Reply(scripted if isinstance(scripted, str) else scripted(turns), "stop", None, None, "scripted")


def _client_library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise EndpointError('a model behind a server needs the openai client: pip install "mediant[endpoint]"') from error
    return openai


@cache
def _tls() -> ssl.SSLContext:
    """Shared by all clients, since reading the certificates takes longer than a small reply."""
    return ssl.create_default_context()


def _check_url(url: str) -> None:
    # Not repeated in the message: the part that is wrong is likely to be a secret.
    if re.search(r"//[^/]*@|[?#]", url):
        raise EndpointError("base_url must not carry a user, password or query, which would be stored; use api_key_variable")
    try:
        parts = urlsplit(url)
        sound = re.fullmatch(r"https?://\S+", url) and url.isprintable() and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise EndpointError(f"expected a base_url like http://localhost:8000/v1, got {url!r}")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _at(data: object, *path: str | int) -> object:
    """The value at `path` in decoded JSON, None where the data has no such place."""
    for step in path:
        if isinstance(step, str) and isinstance(data, dict):
            data = data.get(step)
        elif isinstance(step, int) and isinstance(data, list) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    """A text, with the half surrogate pairs that JSON can carry and no file can replaced."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else None
