"""A judge's server on loopback: it speaks the chat completions API and does what a test scripts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Reply:
    """One scripted answer of the server.

    ``text`` is the judge's message, ``body`` replaces the whole HTTP body; ``trickle_seconds`` sends a
    space every tenth of a second for so long before the body.
    """

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    body: bytes | None = None
    delay_seconds: float = 0.0
    trickle_seconds: float = 0.0


class JudgeServer:
    """Gives the scripted replies one after another, the last one for ever; a function sees each request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most_at_once = 0
        self._script: list[Reply] | Callable[[dict[str, Any]], Reply] = []
        self._lock = threading.Lock()
        self._now = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server.next_reply(request, self.headers["Authorization"])
                try:
                    self.send(reply, request)
                finally:
                    server.done()

            def send(self, reply: Reply, request: dict[str, Any]) -> None:
                time.sleep(reply.delay_seconds)
                body = reply.body if reply.body is not None else completion(reply, request["model"])
                spaces = round(reply.trickle_seconds * 10)
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body) + spaces))
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for _ in range(spaces):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.1)
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client had waited long enough

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def script(self, *replies: Reply) -> None:
        self._script = list(replies)

    def script_each(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self._script = answer

    def next_reply(self, request: dict[str, Any], authorization: str) -> Reply:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.requests.append(request)
            self.keys.append(authorization)
            if callable(self._script):
                return self._script(request)
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def done(self) -> None:
        with self._lock:
            self._now -= 1

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def completion(reply: Reply, model: str) -> bytes:
    if reply.status != 200:
        return json.dumps({"error": {"message": "scripted failure", "type": "server_error"}}).encode()
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    content = {"id": "x", "object": "chat.completion", "created": 0, "model": f"{model}-2026", "choices": [choice]}
    return json.dumps(content).encode()


def verdict(reason: str = "quoted", **scores: Any) -> Reply:
    return Reply(json.dumps({name: {"reason": reason, "score": score} for name, score in scores.items()}))


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.stop()


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture(name="verdict")
def verdict_fixture() -> Callable[..., Reply]:
    return verdict


@pytest.fixture
def configs() -> Path:
    return CONFIGS
