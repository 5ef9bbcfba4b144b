"""A chat API for tests that answers as a function says, to imitate the manners of many servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (number of the request from 1, its JSON) -> status, body (JSON or bytes), headers
Answer = Callable[[int, dict[str, Any]], tuple[int, Any] | tuple[int, Any, Mapping[str, str]]]


def completion(content: Any = "ok", *, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion; `more`: fields of its body; message=..., logprobs=... go into the choice."""
    message = {"role": "assistant", "content": content} | more.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": more.pop("logprobs", None)}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage} | more


def first_token(*top: tuple[str, float]) -> dict[str, Any]:
    """`logprobs` of a choice whose first token has these likeliest tokens."""
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
    return {"content": [{**listed[0], "top_logprobs": listed}]}


def error(message: str, **more: Any) -> dict[str, Any]:
    """An error body."""
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


class ScriptedApi:
    """Serves until closed. `bodies` are the requests that came, `paths` where they went, `headers` theirs."""

    def __init__(self, answer: Answer, drip: float = 0.0):
        self.answer, self.drip = answer, drip
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    api: ScriptedApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.api.lock:
            self.api.bodies.append(body)
            self.api.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(self.api.bodies)
        status, content, *rest = self.api.answer(number, body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(rest[0] if rest else {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for at in range(0, len(data), 1 if self.api.drip else len(data) or 1):
                self.wfile.write(data[at : at + 1] if self.api.drip else data)
                self.wfile.flush()
                time.sleep(self.api.drip)
        except (BrokenPipeError, ConnectionResetError):
            pass
