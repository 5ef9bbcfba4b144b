"""A chat API for tests: speaks the OpenAI wire format, plays every role, and injects faults at a given rate."""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "hang", "cut", "half_body", "no_choices")


class FakeApi:
    """Serves until closed. `billed` maps idempotency keys to (prompt tokens, completion tokens, times delivered)."""

    def __init__(self, fault_rate: float = 0.0, hang: float = 1.0, delay: float = 0.0, seed: int = 0):
        self.fault_rate, self.hang, self.delay = fault_rate, hang, delay
        self.billed: dict[str, list[int]] = {}
        self.bodies: dict[str, bytes] = {}
        self.requests = self.in_flight = self.most_in_flight = 0
        self.faults: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.headers: list[dict[str, str]] = []
        self.lock, self.rng = threading.Lock(), random.Random(seed)
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of everything billed."""
        return sum(b[0] for b in self.billed.values()), sum(b[1] for b in self.billed.values())


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        api = self.api
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        with api.lock:
            api.requests += 1
            api.in_flight += 1
            api.most_in_flight = max(api.most_in_flight, api.in_flight)
            api.headers.append({"authorization": self.headers.get("Authorization", "")})
            fault = api.rng.choice(FAULTS) if api.rng.random() < api.fault_rate else ""
        time.sleep(api.delay)
        text = body["messages"][-1]["content"]
        if "永远失败" in text:
            fault = "500"
        content = _bill(api, key, body) if not fault else b""
        with api.lock:
            api.in_flight -= 1
            if fault:
                api.faults[fault] += 1
        self._answer(fault, content)

    def _answer(self, fault: str, content: bytes) -> None:
        if fault == "hang":
            time.sleep(self.api.hang)
            self.close_connection = True
        elif fault == "429":
            self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.05"})
        elif fault == "500":
            self._send(500, b'{"error": {"message": "oops"}}', {"retry-after-ms": "20"})
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "4000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choi')
            self.close_connection = True
        elif fault == "half_body":
            self._send(200, b'{"id": "x", "object": "chat.completion", "choices": [{"index": 0, "mess')
        elif fault == "no_choices":
            self._send(200, b'{"id": "x", "object": "chat.completion", "model": "m", "created": 1}')
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass


def _bill(api: FakeApi, key: str, body: dict) -> bytes:
    """The completion for this key; a repeated key gets the same one and is not billed again."""
    with api.lock:
        if key in api.bodies:
            api.billed[key][2] += 1
            return api.bodies[key]
        text, finish = reply_to(body["messages"], key)
        used = sum(len(m["content"]) for m in body["messages"]), len(text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        if body.get("logprobs"):
            good = 0.25 if "坏" in body["messages"][-1]["content"] else 0.75
            words = ("A", "B") if "只回答 A 或 B" in body["messages"][-1]["content"] else ("Good", "Bad")
            top = [{"token": t, "logprob": lp, "bytes": None} for t, lp in _top(good, words)]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        answer = {
            "id": key[:8], "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice],
            "usage": {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)},
        }  # fmt: skip
        api.billed[key] = [*used, 1]
        api.bodies[key] = json.dumps(answer, ensure_ascii=False).encode("utf-8")
        return api.bodies[key]


def _top(good: float, words: tuple[str, str]):
    import math

    return [(words[0], math.log(good * 0.8)), (words[1], math.log((1 - good) * 0.8)), ("的", math.log(0.1))]


def reply_to(messages: list[dict[str, str]], key: str) -> tuple[str, str]:
    """What the model says, by role; judges answer in clean, fenced, chatty, cut or wrong JSON, as the key has it."""
    text, luck = messages[-1]["content"], zlib.crc32(key.encode()) % 10
    if "无法读取" in text:  # asked again: now it behaves
        return json.dumps({"verdict": luck % 2, "reason": "重答"}, ensure_ascii=False), "stop"
    if "正方评论员" in text:
        return "好在有画面。", "stop"
    if "反方评论员" in text:
        return "坏在套话多。", "stop"
    if "标准：" in text:
        return ("Bad：有套话" if "坏" in text else "Good"), "stop"
    if '"verdict"' in text:
        clean = json.dumps({"verdict": luck % 2, "reason": "理由"}, ensure_ascii=False)
        forms = {0: f"```json\n{clean}\n```", 1: f"我的结论是 {clean}。", 2: '{"verdict": 1, "rea', 3: '{"score": "好"}',
                 4: clean.replace("}", ",}")}  # fmt: skip
        return forms.get(luck, clean), "length" if luck == 2 else "stop"
    return f"愿你平安喜乐，{'好' if luck % 2 else '坏'}运第{zlib.crc32(key.encode()) % 9973}号来到。", "stop"
