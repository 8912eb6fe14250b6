"""The endpoint against a real server on loopback, which records what it is sent and answers by script."""

import inspect
import json
import logging
import runpy
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from mediant.core.errors import EndpointError, MediantError, UnknownName
from mediant.subject import chat
from mediant.subject import endpoint as module
from mediant.subject.endpoint import Call, Endpoint, Message, OpenAIEndpoint, Reply, ScriptedEndpoint

KEY = "sk-very/secret+key"
QUESTION = [Message("user", "Capital of France?")]
CHAT = {
    "model": "m-2024",
    "choices": [{"message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}
TEXT = {
    "model": "m-2024",
    "choices": [{"text": " Paris", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1},
}
DROP = "close the connection without an answer"
HANG = "send nothing until the test is over"


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"

    @property
    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Request:
    line: str
    body: object
    authorization: str | None


class Server(ThreadingHTTPServer):
    """Answers by script; what comes after the end of the script gets a 418, which nobody retries."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer | str] = []
        self.requests: list[Request] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def lines(self) -> list[str]:
        return [request.line for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw) if raw else None
        self.server.requests.append(Request(f"{self.command} {self.path}", body, self.headers.get("Authorization")))
        answer = self.server.script.pop(0) if self.server.script else Answer(418, {"error": {"message": "the script is over"}})
        if answer == HANG:
            self.server.over.wait(20)
        if isinstance(answer, Answer):
            self.reply(answer)

    do_GET = do_POST

    def reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, "Content-Length": str(len(answer.payload)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.payload)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept, in order; nothing sleeps."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def error_of(endpoint: OpenAIEndpoint) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        endpoint.chat(QUESTION)
    return caught.value


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What is sent, and what is read from the answer


def test_a_chat_sends_the_turns_and_reads_the_reply(server: Server) -> None:
    server.script = [Answer(200, CHAT)]
    reply = OpenAIEndpoint(server.url, "m").chat([Message("system", "Be brief."), *QUESTION])
    assert server.requests == [
        Request(
            "POST /v1/chat/completions",
            {
                "model": "m",
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of France?"}],
                "max_tokens": 256,
                "temperature": 0.0,
            },
            f"Bearer {KEY}",
        )
    ]
    assert reply == Reply("Paris.", "stop", 7, 2, "m-2024")


def test_a_completion_sends_the_bare_prompt(server: Server) -> None:
    server.script = [Answer(200, TEXT)]
    reply = OpenAIEndpoint(server.url + "/", "m").complete("The capital of France is", max_tokens=1)
    assert server.lines == ["POST /v1/completions"]
    assert server.requests[0].body == {"model": "m", "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0.0}
    assert reply == Reply(" Paris", "length", 5, 1, "m-2024")


def test_a_prefill_is_a_last_assistant_turn_that_the_server_is_told_to_continue(server: Server) -> None:
    server.script = [Answer(200, CHAT)]
    reply = OpenAIEndpoint(server.url, "m").chat(QUESTION, prefill="It is")
    assert server.requests[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "It is"}],
        "max_tokens": 256,
        "temperature": 0.0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert reply.text == "Paris."


def test_an_empty_prefill_is_no_prefill(server: Server) -> None:
    server.script = [Answer(200, CHAT), Answer(200, CHAT)]
    endpoint = OpenAIEndpoint(server.url, "m")
    endpoint.chat(QUESTION, prefill="")
    endpoint.chat(QUESTION)
    assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize("stop", [("\n", "END"), ["\n", "END"]])
def test_sampling_options_reach_both_routes(server: Server, stop: tuple[str, ...] | list[str]) -> None:
    server.script = [Answer(200, CHAT), Answer(200, TEXT)]
    endpoint = OpenAIEndpoint(server.url, "m")
    endpoint.chat(QUESTION, max_tokens=3, temperature=0.7, seed=0, stop=stop)
    endpoint.complete("The", max_tokens=3, temperature=0.7, seed=0, stop=stop)
    for request in server.requests:
        assert isinstance(request.body, dict)
        sent = {name: request.body[name] for name in ("max_tokens", "temperature", "seed", "stop")}
        assert sent == {"max_tokens": 3, "temperature": 0.7, "seed": 0, "stop": ["\n", "END"]}


def test_one_stop_text_is_not_taken_apart_into_letters(server: Server) -> None:
    server.script = [Answer(200, TEXT)]
    OpenAIEndpoint(server.url, "m").complete("The", stop="END")
    assert server.requests[0].body["stop"] == ["END"]  # type: ignore[index]


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}])
def test_options_no_server_could_use_are_refused_before_anything_is_sent(server: Server, options: dict[str, float]) -> None:
    for endpoint in (OpenAIEndpoint(server.url, "m"), ScriptedEndpoint(["never"])):
        with pytest.raises(EndpointError, match="expected max_tokens >= 1"):
            endpoint.complete("The", **options)  # type: ignore[arg-type]
    assert server.requests == []


def test_a_chat_without_messages_is_refused(server: Server) -> None:
    for endpoint in (OpenAIEndpoint(server.url, "m"), ScriptedEndpoint(["never"])):
        with pytest.raises(EndpointError, match="at least one message, got none"):
            endpoint.chat([])
    assert server.requests == []


def test_half_a_surrogate_pair_is_refused_in_a_prompt_and_replaced_in_a_reply(server: Server) -> None:
    server.script = [Answer(200, b'{"choices": [{"text": "a\\ud83d b\\ud83d\\ude00"}]}')]
    endpoint = OpenAIEndpoint(server.url, "m")
    assert endpoint.complete("x").text == "a\N{REPLACEMENT CHARACTER} b\N{GRINNING FACE}"
    with pytest.raises(EndpointError, match="must be valid Unicode text"):
        endpoint.complete("a\ud83d")
    assert len(server.requests) == 1


def test_what_a_server_leaves_out_is_none_or_empty(server: Server) -> None:
    server.script = [
        Answer(200, {"choices": [{"text": ""}]}),
        Answer(
            200, {"choices": [{"text": "a", "finish_reason": None}], "usage": {"prompt_tokens": "9", "completion_tokens": True}}
        ),
    ]
    endpoint = OpenAIEndpoint(server.url, "m")
    assert endpoint.complete("x") == Reply("", "", None, None, "m")
    assert endpoint.complete("x") == Reply("a", "", None, None, "m")


def test_model_output_is_returned_as_it_stands(server: Server) -> None:
    text = "{{ 7*7 }} <script>\x1b[31m</script> __import__('os')\r\n\u202e"
    server.script = [Answer(200, {"choices": [{"message": {"content": text}}]})]
    reply = OpenAIEndpoint(server.url, "m").chat(QUESTION)
    assert type(reply.text) is str
    assert reply.text == text


def test_json_under_another_content_type_is_read(server: Server) -> None:
    server.script = [Answer(200, CHAT, kind="text/plain")]
    assert OpenAIEndpoint(server.url, "m").chat(QUESTION).text == "Paris."


# Retries


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_retried_until_the_answer_comes(server: Server, pauses: list[float], status: int) -> None:
    server.script = [Answer(status, {}), Answer(status, {}), Answer(200, CHAT)]
    assert OpenAIEndpoint(server.url, "m").chat(QUESTION).text == "Paris."
    assert (len(server.requests), len(pauses)) == (3, 2)
    assert server.requests[0] == server.requests[1] == server.requests[2]


def test_retries_end_after_their_number_and_pause_longer_each_time(server: Server, pauses: list[float]) -> None:
    server.script = [Answer(503, {"error": {"message": "loading"}}) for _ in range(9)]
    error = error_of(OpenAIEndpoint(server.url + "/", "m", retries=4))
    assert str(error) == f"{server.url}/chat/completions answered with status 503, expected 200: 'loading'"
    assert len(server.requests) == 5
    assert len(pauses) == 4
    assert all(later >= 1.5 * earlier > 0 for earlier, later in pairwise(pauses))


def test_no_retries_means_one_request(server: Server, pauses: list[float]) -> None:
    server.script = [Answer(503, {}), Answer(200, CHAT)]
    assert "status 503" in str(error_of(OpenAIEndpoint(server.url, "m", retries=0)))
    assert (len(server.requests), pauses) == (1, [])


def test_the_pause_a_server_asks_for_is_kept(server: Server, pauses: list[float]) -> None:
    server.script = [Answer(429, {}, {"Retry-After": "17"}), Answer(503, {}, {"Retry-After": "0"}), Answer(200, CHAT)]
    assert OpenAIEndpoint(server.url, "m").chat(QUESTION).text == "Paris."
    assert len(server.requests) == 3
    assert pauses[0] == 17
    assert pauses[1] <= 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_retried(server: Server, pauses: list[float], status: int) -> None:
    server.script = [Answer(status, {"error": {"message": "no"}})]
    error = error_of(OpenAIEndpoint(server.url, "m"))
    assert f"status {status}, expected 200: 'no'" in str(error)
    assert server.lines.count("POST /v1/chat/completions") == 1
    assert pauses == []


def test_a_dropped_connection_is_retried(server: Server, pauses: list[float]) -> None:
    server.script = [DROP, Answer(200, CHAT)]
    assert OpenAIEndpoint(server.url, "m").chat(QUESTION).text == "Paris."
    assert (len(server.requests), len(pauses)) == (2, 1)


def test_a_server_that_is_not_there_is_tried_again_and_then_named(pauses: list[float]) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    error = error_of(OpenAIEndpoint(url, "m", retries=3))
    assert str(error) == f"cannot reach {url}/chat/completions (ConnectError, retries: 3); is the server running there?"
    assert len(pauses) == 3


def test_a_server_that_does_not_answer_in_time_is_tried_again_and_then_named(server: Server, pauses: list[float]) -> None:
    server.script = [HANG, HANG, Answer(200, CHAT)]
    error = error_of(OpenAIEndpoint(server.url, "m", timeout_s=0.2, retries=1))
    expected = f"{server.url}/chat/completions did not answer within 0.2 s (retries: 1); raise timeout_s"
    assert (str(error), len(server.requests), len(pauses)) == (expected, 2, 1)


# Malformed answers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b'{"choices": [',
        b"[" * 100_000,
        b"null",
        b"[1]",
        b"\xff\xfe\xfa",
        {"choices": []},
        {"choices": None},
        {"choices": {"0": 1}},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": ["Paris"]}}]},
        {"choices": [{"text": "Paris"}]},
        {"error": {"message": "out of memory"}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_an_answer_without_its_text_says_where_it_was_expected(server: Server, body: object) -> None:
    server.script = [Answer(203, body)]
    message = str(error_of(OpenAIEndpoint(server.url, "m")))
    start = f"{server.url}/chat/completions answered with status 203: expected JSON with text at choices[0].message.content, got "
    assert message.startswith(start)
    assert len(message) < len(start) + 350
    assert len(server.requests) == 1


def test_a_page_instead_of_json_is_told_in_its_words(server: Server) -> None:
    server.script = [Answer(200, b"<html>busy</html>", kind="text/html")]
    assert str(error_of(OpenAIEndpoint(server.url, "m"))).endswith("got '<html>busy</html>'")


def test_a_completion_without_text_says_so(server: Server) -> None:
    server.script = [Answer(200, CHAT)]
    with pytest.raises(EndpointError, match=r"expected JSON with text at choices\[0\]\.text, got '\{"):
        OpenAIEndpoint(server.url, "m").complete("The")


def test_an_error_inside_a_success_is_told_in_the_servers_words(server: Server) -> None:
    server.script = [Answer(200, {"error": {"message": "out of memory"}})]
    assert str(error_of(OpenAIEndpoint(server.url, "m"))).endswith("got 'out of memory'")


def test_a_servers_words_are_cut_and_cannot_steer_a_terminal(server: Server) -> None:
    server.script = [Answer(500, {"error": {"message": "\x1b[2J" + "a" * 1000}})]
    message = str(error_of(OpenAIEndpoint(server.url, "m", retries=0)))
    assert message.endswith("'\\x1b[2J" + "a" * 296 + "...'")


# The key


def everything_said(endpoint: OpenAIEndpoint, error: BaseException) -> str:
    """All that could be printed or stored; a hidden context counts too, since debuggers show it."""
    said = [repr(endpoint), str(endpoint), json.dumps(asdict(endpoint))]
    chain: BaseException | None = error
    while chain is not None:
        said += [*traceback.format_exception(chain), repr(chain), repr(vars(chain)), repr(chain.args)]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(said)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        Answer(401, f"who is {KEY}?".encode(), kind="text/plain"),
        Answer(500, {"detail": "x" * 280 + KEY}),
        Answer(200, {"choices": [], "debug": f"Bearer {KEY}"}),
        Answer(200, f"<pre>{KEY}</pre>".encode(), kind="text/html"),
        DROP,
        HANG,
    ],
    ids=["told", "bare", "at the cut", "empty choices", "no json", "dropped", "timeout"],
)
def test_the_key_is_in_no_text_error_or_log(server: Server, answer: Answer | str, caplog: pytest.LogCaptureFixture) -> None:
    server.script = [answer]
    endpoint = OpenAIEndpoint(server.url, "m", timeout_s=0.2 if answer == HANG else 10.0, retries=0)
    with caplog.at_level(logging.DEBUG):
        error = error_of(endpoint)
    said = everything_said(endpoint, error)
    assert server.requests[0].authorization == f"Bearer {KEY}"
    assert server.url in str(error)
    assert caplog.text
    assert "sk-very" not in said + caplog.text
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_stored_answer_does_not_show_the_key() -> None:
    assert "sk-very" not in repr(module._Answer("http://h/v1/models", 200, "{}", KEY))


def test_a_refused_key_is_traced_to_its_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "abc")
    server.script = [Answer(401, {"error": {"message": "bad key abc"}})]
    error = error_of(OpenAIEndpoint(server.url, "m", "LAB_KEY"))
    assert str(error).endswith("'bad key ***'; check the key in the environment variable LAB_KEY")


def test_the_key_is_looked_up_at_each_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [Answer(200, CHAT)] * 3
    endpoint = OpenAIEndpoint(server.url, "m", "LAB_KEY")
    for value in ("first", " second\n", ""):
        monkeypatch.setenv("LAB_KEY", value)
        endpoint.chat(QUESTION)
    assert [request.authorization for request in server.requests] == ["Bearer first", "Bearer second", "Bearer no-key"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]"])
def test_a_server_on_this_machine_needs_no_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    error = error_of(OpenAIEndpoint(f"http://{host}:{closed_port()}/v1", "m", retries=0))
    assert "is the server running there?" in str(error)


@pytest.mark.parametrize("host", ["localhost.example.invalid", "127.0.0.1.invalid", "10.0.0.1", "[::2]", "notlocalhost"])
def test_any_other_server_needs_a_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    error = error_of(OpenAIEndpoint(f"http://{host}/v1", "m"))
    assert str(error) == f"http://{host}/v1 needs a key; set the environment variable OPENAI_API_KEY to it"


@pytest.mark.parametrize("key", ["sk-very\nsecret", "sk-very secret", "sk-very\u00e9", "sk-very\x7f"])
def test_a_key_that_fits_no_header_is_refused_unseen(server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    endpoint = OpenAIEndpoint(server.url, "m")
    error = error_of(endpoint)
    assert "the key in OPENAI_API_KEY holds characters no header may have" in str(error)
    assert "very" not in everything_said(endpoint, error)
    assert server.requests == []


def test_a_key_given_as_the_variable_is_refused_unseen() -> None:
    with pytest.raises(EndpointError, match="names an environment variable in capitals") as caught:
        OpenAIEndpoint("http://localhost:1/v1", "m", KEY)
    assert "sk-very" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://u:sk-very@h/v1", "https://u:sk-very@h:port/v1", "https://h/v1?key=sk-very", "http://h#sk-very"]
)
def test_a_url_with_a_secret_is_refused_unseen(url: str) -> None:
    with pytest.raises(EndpointError, match="base_url must not carry") as caught:
        OpenAIEndpoint(url, "m")
    assert "sk-very" not in str(caught.value)


def test_a_proxy_from_the_environment_does_not_see_loopback_requests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.script = [Answer(200, CHAT)]
    assert OpenAIEndpoint(server.url, "m", retries=0).chat(QUESTION).text == "Paris."


def test_the_client_is_closed_after_an_answer_and_after_a_failure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    clients: list[openai.OpenAI] = []

    class Recorded(openai.OpenAI):
        def __init__(self, **fields: object) -> None:
            super().__init__(**fields)  # type: ignore[arg-type]
            clients.append(self)

    monkeypatch.setattr(openai, "OpenAI", Recorded)
    server.script = [Answer(200, CHAT), Answer(401, {}), DROP]
    endpoint = OpenAIEndpoint(server.url, "m", retries=0)
    endpoint.chat(QUESTION)
    for _ in range(2):
        error_of(endpoint)
    assert [client.is_closed() for client in clients] == [True, True, True]


# Fields


BAD_URLS = [
    "",
    "localhost:8000/v1",
    "ftp://h/v1",
    "http://",
    "http://:80/v1",
    "http:///v1",
    "http://[::1/v1",
    "http://h:99999",
    "http://h:0",
    "http://a b/v1",
    "http://h/\x01",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_base_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="expected a base_url like http://localhost:8000/v1, got"):
        OpenAIEndpoint(url, "m")


def test_a_host_that_is_no_name_is_an_endpoint_error() -> None:
    assert "http://..../v1/chat/completions" in str(error_of(OpenAIEndpoint("http://..../v1", "m", retries=0)))


@pytest.mark.parametrize(
    "fields", [{"timeout_s": 0.0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"retries": -1}]
)
def test_limits_that_mean_nothing_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(EndpointError, match="expected timeout_s > 0 and retries >= 0"):
        OpenAIEndpoint("http://localhost:8000/v1", "m", **fields)  # type: ignore[arg-type]


def test_a_role_that_does_not_exist_names_the_nearest() -> None:
    # Run apart from the import, whose type checks under test would speak first.
    message = runpy.run_path(str(chat.__file__))["Message"]
    with pytest.raises(UnknownName, match="unknown role 'asistant'; did you mean 'assistant'"):
        message("asistant", "x")


# Models


def listing(*names: str) -> Answer:
    return Answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def test_a_server_lists_its_models_in_its_order(server: Server) -> None:
    server.script = [listing("qwen-7b", "llama-8b"), listing()]
    endpoint = OpenAIEndpoint(server.url, "")
    assert endpoint.models() == ["qwen-7b", "llama-8b"]
    assert endpoint.models() == []
    assert server.lines == ["GET /v1/models"] * 2


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": [{"id": "a"}, {"id": 3}]}, {"data": ["a"]}, b"models: a"])
def test_a_listing_without_names_says_so(server: Server, body: object) -> None:
    server.script = [Answer(200, body)]
    with pytest.raises(EndpointError, match=r"/v1/models answered with status 200: expected JSON with text at data\[\]\.id"):
        OpenAIEndpoint(server.url, "m").models()


def test_a_refused_listing_is_not_asked_for_again(server: Server) -> None:
    server.script = [Answer(404, {"error": {"message": "no such page"}})]
    with pytest.raises(EndpointError, match=r"status 404.*'no such page'; check the path of base_url"):
        OpenAIEndpoint(server.url, "m").models()
    assert server.lines == ["GET /v1/models"]


@pytest.mark.parametrize("status", [400, 404])
def test_an_unknown_model_names_the_nearest_the_server_has(server: Server, status: int) -> None:
    server.script = [Answer(status, {"error": {"message": "no such model"}}), listing("qwen-7b", "llama-8b")]
    with pytest.raises(UnknownName) as caught:
        OpenAIEndpoint(server.url, "quen-7b").chat(QUESTION)
    assert str(caught.value) == f"unknown model 'quen-7b'; did you mean 'qwen-7b'? (at {server.url})"
    assert server.lines == ["POST /v1/chat/completions", "GET /v1/models"]


@pytest.mark.parametrize("second", [listing("m", "n"), listing(), Answer(503, {}), Answer(200, b"no list")], ids=str)
def test_a_refusal_for_another_reason_keeps_the_servers_words(server: Server, pauses: list[float], second: Answer) -> None:
    server.script = [Answer(400, {"error": {"message": "prompt too long"}}), second, listing("n")]
    assert str(error_of(OpenAIEndpoint(server.url, "m"))).endswith("status 400, expected 200: 'prompt too long'")
    assert (len(server.requests), pauses) == (2, [])


# The library


def test_without_the_client_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert 'pip install "mediant[endpoint]"' in str(error_of(OpenAIEndpoint("http://localhost:1/v1", "m")))


def test_the_client_library_is_not_needed_to_import_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "ScriptedEndpoint" in runpy.run_path(str(module.__file__))


# The scripted stand-in


def test_scripted_replies_come_in_order_and_calls_are_recorded() -> None:
    endpoint = ScriptedEndpoint(["one", lambda turns: " | ".join(f"{turn.role}: {turn.content}" for turn in turns), "three"])
    assert endpoint.chat(QUESTION, seed=3, stop=["."]) == Reply("one", "stop", None, None, "scripted")
    assert endpoint.chat(QUESTION, prefill="It is").text == "user: Capital of France? | assistant: It is"
    assert endpoint.complete("The", max_tokens=1).text == "three"
    defaults = {"max_tokens": 256, "temperature": 0.0}
    assert endpoint.calls == [
        Call(tuple(QUESTION), None, defaults | {"seed": 3, "stop": ["."]}),
        Call(tuple(QUESTION), None, defaults, "It is"),
        Call(None, "The", defaults | {"max_tokens": 1}),
    ]


def test_a_scripted_function_sees_a_prompt_as_one_user_turn() -> None:
    seen: list[list[Message]] = []
    ScriptedEndpoint([lambda turns: seen.append(turns) or "x"]).complete("The")
    assert seen == [[Message("user", "The")]]


def test_a_scripted_exception_is_raised_and_the_script_goes_on() -> None:
    endpoint = ScriptedEndpoint([EndpointError("down"), "up"])
    with pytest.raises(EndpointError, match=r"^down$"):
        endpoint.complete("a")
    assert endpoint.complete("b").text == "up"
    assert [call.prompt for call in endpoint.calls] == ["a", "b"]


def test_a_script_that_runs_out_says_how_long_it_was() -> None:
    endpoint = ScriptedEndpoint(["a", "b"])
    assert [endpoint.complete("x").text for _ in range(2)] == ["a", "b"]
    with pytest.raises(EndpointError, match="call 3 of a scripted endpoint with 2 replies"):
        endpoint.chat(QUESTION)


def test_a_looping_script_starts_again_unless_it_is_empty() -> None:
    endpoint = ScriptedEndpoint(["a", "b"], loop=True)
    assert [endpoint.complete("x").text for _ in range(5)] == ["a", "b", "a", "b", "a"]
    with pytest.raises(EndpointError, match="call 1 of a scripted endpoint with 0 replies"):
        ScriptedEndpoint([], loop=True).complete("x")


def test_one_text_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(MediantError, match="got the text 'abc'; put it in brackets"):
        ScriptedEndpoint("abc")


@pytest.mark.parametrize("method", ["chat", "complete"])
def test_the_stand_in_is_asked_in_the_same_way_as_a_server(method: str) -> None:
    faces = [inspect.signature(getattr(cls, method)) for cls in (Endpoint, OpenAIEndpoint, ScriptedEndpoint)]
    assert faces[0] == faces[1] == faces[2]


def test_the_stand_in_records_the_options_a_server_would_receive(server: Server) -> None:
    server.script = [Answer(200, TEXT)]
    scripted = ScriptedEndpoint(["x"])
    for endpoint in (OpenAIEndpoint(server.url, "m"), scripted):
        endpoint.complete("The", max_tokens=9, temperature=1.5, seed=4, stop=("a", "b"))
    assert server.requests[0].body == {"model": "m", "prompt": "The", **scripted.calls[0].options}
