"""A chat server on loopback whose replies come from any function of the last message, such as a real language model.

with serving(model_reply(lm)) as url:
    OpenAIEndpoint(url, "default").chat([Message("user", "Hello")])
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mediant.subject import Subject


def model_reply(subject: Subject, *, longest: int = 200, words: int | None = None) -> Callable[[str], str]:
    """Greedy replies of a language model, under its chat template where it has one; to the last `words` if it has little room."""

    def reply(text: str) -> str:
        tokenizer, prompt = subject.tokenizer, " ".join(text.split()[-words:]) if words else text
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        batch = subject.encode(prompt)
        made = subject.generate(batch, max_new_tokens=longest)
        return tokenizer.decode(made[0], skip_special_tokens=True)

    return reply


@contextmanager
def serving(reply: Callable[[Any], str]) -> Iterator[str]:
    """The base URL of a server that answers chats, one at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                text = reply(body["messages"][-1]["content"])
            found = {
                "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            }  # fmt: skip
            payload = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
