"""A judge's server: honest, scripted, or misbehaving on command, over real HTTP on loopback. It keeps books.

It speaks OpenAI's chat completions API. In a process of its own, ``GET /books`` gives its books as JSON::

    python tests/fitness/judge_server.py --seed 1 --fail-share 0.2 --fail 429_ms --fail 500
"""

from __future__ import annotations

import argparse
import email.utils
import hashlib
import json
import math
import random
import re
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]
NOISE_TOKEN = "?"  # what the judge might have written in place of a score, with a probability of 0.1


@dataclass(frozen=True)
class Reply:
    """What the server answers.

    ``text`` is the judge's message, ``body`` replaces the whole HTTP body; ``trickle_seconds`` sends a space every
    tenth of a second for so long before the body; ``sent_share`` below 1 ends the connection within the body.
    ``pieces`` is the text as the honest judge built it: even ones are text, odd ones are scores.
    """

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    body: bytes | None = None
    delay_seconds: float = 0.0
    trickle_seconds: float = 0.0
    name: str = "scripted"
    content_type: str = "application/json"
    sent_share: float = 1.0
    finish_reason: str = "stop"
    error: dict[str, Any] | None = None
    pieces: tuple[str, ...] = ()
    scale: tuple[int, int] = (1, 7)


@dataclass
class Entry:
    """One request in the books; the moments are on the server's monotonic clock."""

    arrived_seconds: float
    request: Request
    authorization: str | None
    answered: str = ""
    status: int = 0
    asked_to_wait_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended_seconds: float = math.inf
    delivered: bool = False


@dataclass
class Books:
    """Every request, in the order of arrival."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def most_at_once(self) -> int:
        """The largest number of requests under way at one moment."""
        moments = [(entry.arrived_seconds, 1) for entry in self.entries]
        moments += [(entry.ended_seconds, -1) for entry in self.entries]
        now = most = 0
        for _, change in sorted(moments):  # at the same moment an end comes first
            now += change
            most = max(most, now)
        return most

    def most_within(self, seconds: float) -> int:
        """The largest number of arrivals in any window of that length."""
        arrivals = sorted(entry.arrived_seconds for entry in self.entries)
        first = most = 0
        for last, moment in enumerate(arrivals):
            while arrivals[first] <= moment - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    @property
    def billed(self) -> list[Entry]:
        """The requests that a provider would bill: the judge wrote a reply, whether or not it arrived."""
        return [entry for entry in self.entries if entry.completion_tokens or entry.prompt_tokens]

    @property
    def billed_tokens(self) -> int:
        return sum(entry.prompt_tokens + entry.completion_tokens for entry in self.entries)

    def billed_usd(self, input_per_million: float, output_per_million: float) -> float:
        sent = sum(entry.prompt_tokens for entry in self.entries)
        received = sum(entry.completion_tokens for entry in self.entries)
        return (sent * input_per_million + received * output_per_million) / 1e6

    @property
    def delivered(self) -> int:
        """Replies that reached a client in full, whatever they said."""
        return sum(entry.delivered for entry in self.entries)

    def answers(self, name: str) -> list[str]:
        """The graded answers of the requests that were answered in this way."""
        return [read_question(entry.request)["answer"] for entry in self.entries if entry.answered == name]

    @classmethod
    def from_json(cls, text: str | bytes) -> Books:
        return cls([Entry(**entry) for entry in json.loads(text)])

    def to_json(self) -> bytes:
        return json.dumps([asdict(entry) for entry in self.entries]).encode()


# The honest judge --------------------------------------------------------------------------------------------------


def honest_score(answer: str, criterion: str, scale: tuple[int, int] = (1, 7)) -> int:
    """What the honest judge gives an answer: of the text alone, so that a test can compute it too."""
    low, high = scale
    digest = hashlib.sha256(f"{criterion}\n{answer}".encode()).digest()
    return low + int.from_bytes(digest[:8], "big") % (high - low + 1)


def honest_probabilities(score: int, scale: tuple[int, int] = (1, 7)) -> dict[str, float]:
    """The next token where the score stands: 0.5 for the score, 0.1 for a token that is none, the rest shared."""
    others = [str(one) for one in range(scale[0], scale[1] + 1) if one != score]
    return {str(score): 0.5, **dict.fromkeys(others, 0.4 / len(others)), NOISE_TOKEN: 0.1}


def expected_score(answer: str, criterion: str, scale: tuple[int, int] = (1, 7)) -> float:
    """The mean over the scale of the honest judge's probabilities."""
    shares = honest_probabilities(honest_score(answer, criterion, scale), scale)
    shares.pop(NOISE_TOKEN)
    return sum(int(score) * share for score, share in shares.items()) / sum(shares.values())


def read_question(request: Request) -> dict[str, Any]:
    """The data of a request, with the ``criteria`` and the ``scale`` that it asks for; no scale: a comparison."""
    task = str(request["messages"][0]["content"])
    data: dict[str, Any] = next(json.loads(one["content"]) for one in request["messages"] if one["role"] == "user")
    scale = re.search(r"scored from (-?\d+) to (-?\d+)", task)
    data["scale"] = (int(scale[1]), int(scale[2])) if scale else None
    schema = request.get("response_format", {}).get("json_schema")
    properties = schema and schema["schema"]["properties"]
    data["criteria"] = list(properties or re.findall(r"^- ([a-z][a-z0-9_]*): ", task, re.MULTILINE))
    return data


def honest(request: Request, delay_seconds: float = 0.0) -> Reply:
    """The reply of a judge that keeps to the protocol. Its reasons quote the answer and hold a number."""
    question = read_question(request)
    if question["scale"] is None:
        return _compared(question, delay_seconds)
    pieces = []
    for index, criterion in enumerate(question["criteria"]):
        reason = f"7 of 10 would say so: {question['answer'][:40]}"
        head = "{" if index == 0 else "}, "
        pieces += [f'{head}"{criterion}": {{"reason": {json.dumps(reason, ensure_ascii=False)}, "score": ']
        pieces += [str(honest_score(question["answer"], criterion, question["scale"]))]
    pieces += ["}}"]
    return Reply(
        "".join(pieces), name="honest", delay_seconds=delay_seconds, pieces=tuple(pieces), scale=question["scale"]
    )


def _compared(question: dict[str, Any], delay_seconds: float) -> Reply:
    """Prefers the answer to which the honest judge gives more."""
    said = {}
    for criterion in question["criteria"]:
        a, b = (honest_score(question[name], criterion) for name in ("answer_a", "answer_b"))
        said[criterion] = {"reason": f"{a} and {b}", "better": "A" if a > b else "B" if b > a else "tie"}
    return Reply(json.dumps(said), name="honest", delay_seconds=delay_seconds)


# The misbehaviours -------------------------------------------------------------------------------------------------


def _with_scores(request: Request, change: Callable[[str, tuple[int, int]], str]) -> str:
    """The honest text with every score written in another way."""
    reply = honest(request)
    return "".join(change(piece, reply.scale) if index % 2 else piece for index, piece in enumerate(reply.pieces))


def _other(score: str, scale: tuple[int, int]) -> str:
    return str(scale[0] if int(score) != scale[0] else scale[1])


def _json_change(request: Request, change: Callable[[dict[str, Any]], object]) -> str:
    verdict = json.loads(honest(request).text or "")
    change(verdict)
    return json.dumps(verdict, ensure_ascii=False)


def _failure(status: int, code: str | None = None, message: str = "scripted failure", **headers: str) -> Reply:
    error = {"message": message, "type": code or "server_error", "param": None, "code": code}
    return Reply(status=status, error=error, headers={name.replace("_", "-"): value for name, value in headers.items()})


def _refuses(setting: str, wanted: Callable[[Request], bool], message: str) -> Callable[[Request, Reply], Reply]:
    def answer(request: Request, good: Reply) -> Reply:
        if not wanted(request):
            return good
        error = {"message": message, "type": "invalid_request_error", "param": setting, "code": "unsupported_value"}
        return Reply(status=400, error=error)

    return answer


def _date(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


# By name: what becomes of a request and of the honest reply to it.
MISBEHAVIOURS: dict[str, Callable[[Request, Reply], Reply]] = {
    "honest": lambda request, good: good,
    "429": lambda request, good: _failure(429, "rate_limit_exceeded", Retry_After="1"),
    "429_date": lambda request, good: _failure(429, "rate_limit_exceeded", Retry_After=_date(2)),
    "429_ms": lambda request, good: _failure(429, "rate_limit_exceeded", retry_after_ms="50"),
    "429_bare": lambda request, good: _failure(429, "rate_limit_exceeded"),
    "insufficient_quota": lambda request, good: _failure(429, "insufficient_quota", "You exceeded your current quota."),
    "500": lambda request, good: _failure(500, retry_after_ms="20"),
    "503_html": lambda request, good: Reply(
        status=503, body=b"<html>no healthy upstream</html>", content_type="text/html", headers={"retry-after-ms": "20"}
    ),
    "401": lambda request, good: _failure(401, "invalid_api_key", "Incorrect API key provided."),
    "404_model": lambda request, good: _failure(
        404, "model_not_found", f"The model `{request['model']}` does not exist."
    ),
    "timeout": lambda request, good: replace(good, delay_seconds=30.0),
    "trickle": lambda request, good: replace(good, trickle_seconds=30.0),
    "half_reply": lambda request, good: replace(good, sent_share=0.5),
    "no_reply": lambda request, good: replace(good, sent_share=0.0),
    "content_type": lambda request, good: Reply(body=b"<html>Please log in</html>", content_type="text/html"),
    "no_choices": lambda request, good: Reply(body=b'{"id": "x", "object": "chat.completion", "choices": []}'),
    "empty": lambda request, good: Reply(""),
    "no_content": lambda request, good: Reply(None),
    "refusal": lambda request, good: Reply(refusal="I cannot grade this."),
    "filtered": lambda request, good: Reply("", finish_reason="content_filter"),
    "wrong_json": lambda request, good: Reply((good.text or "").replace('"', "'")),
    "prose": lambda request, good: Reply(f"Here is my verdict:\n{good.text}\nI hope that helps!"),
    "fenced": lambda request, good: Reply(f"```json\n{good.text}\n```"),
    "two_verdicts": lambda request, good: Reply(f"{_with_scores(request, _other)}\nNo, rather:\n{good.text}"),
    "cut": lambda request, good: Reply((good.text or "")[: len(good.text or "") // 2], finish_reason="length"),
    "cut_at_the_end": lambda request, good: replace(good, finish_reason="length"),
    "huge": lambda request, good: Reply(
        _json_change(request, lambda verdict: [one.update(reason="ha" * 500_000) for one in verdict.values()])
    ),
    "huge_noise": lambda request, good: Reply("7" * 1_000_000),
    "out_of_scale": lambda request, good: Reply(_with_scores(request, lambda score, scale: str(scale[1] + 1))),
    "nan_score": lambda request, good: Reply(_with_scores(request, lambda score, scale: "NaN")),
    "string_score": lambda request, good: Reply(_with_scores(request, lambda score, scale: f'"{score}"')),
    "fraction_score": lambda request, good: Reply(_with_scores(request, lambda score, scale: f"{score}.5")),
    "boolean_score": lambda request, good: Reply(_with_scores(request, lambda score, scale: "true")),
    "null_score": lambda request, good: Reply(_with_scores(request, lambda score, scale: "null")),
    "missing_criterion": lambda request, good: Reply(_json_change(request, lambda verdict: verdict.popitem())),
    "extra_criterion": lambda request, good: Reply(
        _json_change(request, lambda verdict: verdict.update(bonus={"reason": "nice", "score": 7}))
    ),
    "duplicate_key": lambda request, good: Reply(
        f"{_with_scores(request, _other).removesuffix('}')}, {(good.text or '').removeprefix('{')}"
    ),
    "duplicate_score": lambda request, good: Reply(
        _with_scores(request, lambda score, scale: f'{_other(score, scale)}, "score": {score}')
    ),
    "prefers_the_first": lambda request, good: Reply((good.text or "").replace('"B"', '"A"').replace('"tie"', '"A"')),
    "refuses_schema": _refuses(
        "response_format",
        lambda request: request.get("response_format", {}).get("type") == "json_schema",
        "response_format of type json_schema is not supported by this model",
    ),
    "refuses_json_object": _refuses(
        "response_format", lambda request: "response_format" in request, "response_format is not supported"
    ),
    "refuses_max_completion_tokens": _refuses(
        "max_completion_tokens",
        lambda request: "max_completion_tokens" in request,
        "Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead.",
    ),
    "refuses_max_tokens": _refuses(
        "max_tokens",
        lambda request: "max_tokens" in request,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    ),
    "refuses_logprobs": _refuses(
        "logprobs", lambda request: bool(request.get("logprobs")), "logprobs are not supported with this model"
    ),
    "ignores_logprobs": lambda request, good: replace(good, pieces=()),
}


def misbehave(name: str, request: Request, delay_seconds: float = 0.0) -> Reply:
    """The reply of a judge that misbehaves in the named way."""
    reply = MISBEHAVIOURS[name](request, honest(request))
    return replace(reply, name=name, delay_seconds=max(delay_seconds, reply.delay_seconds))


def verdict(reason: str = "quoted", **scores: Any) -> Reply:
    return Reply(json.dumps({name: {"reason": reason, "score": score} for name, score in scores.items()}))


# Bodies ------------------------------------------------------------------------------------------------------------


def _usage(reply: Reply, request: Request) -> tuple[int, int]:
    """Tokens (sent, received), about four bytes each; nothing where the judge did not get to write."""
    if reply.status != 200 or reply.body is not None:
        return 0, 0
    sent = sum(4 + len(str(one["content"]).encode()) // 4 for one in request["messages"])
    most = request.get("max_completion_tokens") or request.get("max_tokens") or math.inf
    return sent, int(min(most, 1 + len((reply.text or reply.refusal or "").encode()) // 4))


def _logprobs(reply: Reply, most: int) -> dict[str, Any]:
    """Every digit is a token; where a score stands, the honest judge's probabilities, likeliest first."""

    def token(text: str, share: float) -> dict[str, Any]:
        return {"token": text, "logprob": math.log(share), "bytes": list(text.encode())}

    content = []
    for index, piece in enumerate(reply.pieces):
        for text in re.findall(r"\d|\D{1,4}", piece):
            shares = honest_probabilities(int(piece), reply.scale) if index % 2 and text == piece else {text: 1.0}
            best = sorted(shares, key=lambda one: -shares[one])[:most]
            content.append({**token(text, shares[text]), "top_logprobs": [token(one, shares[one]) for one in best]})
    return {"content": content, "refusal": None}


def _body(reply: Reply, request: Request, usage: tuple[int, int]) -> bytes:
    if reply.body is not None:
        return reply.body
    if reply.status != 200:
        error = reply.error or {"message": "scripted failure", "type": "server_error"}
        return json.dumps({"error": error}).encode()
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish_reason, "message": message, "logprobs": None}
    if request.get("logprobs") and reply.pieces:
        choice["logprobs"] = _logprobs(reply, request.get("top_logprobs") or 0)
    content = {"id": "x", "object": "chat.completion", "created": 0, "model": f"{request['model']}-2026"}
    tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps({**content, "choices": [choice], "usage": tokens}).encode()


def _asked_to_wait(headers: dict[str, str]) -> float:
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000
    value = headers.get("Retry-After", "0")
    with suppress(ValueError):
        return float(value)
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())


# The server --------------------------------------------------------------------------------------------------------


def _gone(connection: socket.socket) -> bool:
    """Whether the client has closed its end."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class _QuietServer(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed leaves a broken connection; other errors are shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class JudgeServer:
    """Honest until told otherwise. The books may be read at any time."""

    def __init__(self, port: int = 0, delay_seconds: float = 0.0) -> None:
        self.books = Books()
        self.delay_seconds = delay_seconds
        self._answer: Callable[[Request], Reply] = lambda request: honest(request, self.delay_seconds)
        self._lock = threading.Lock()
        self._open: list[tuple[Entry, socket.socket]] = []
        self._http = _QuietServer(("127.0.0.1", port), _handler(self))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def script(self, *replies: Reply) -> None:
        """Gives these replies one after another, the last one for ever."""
        left = list(replies)
        self._answer = lambda request: left.pop(0) if len(left) > 1 else left[0]

    def script_each(self, answer: Callable[[Request], Reply]) -> None:
        """Lets a function see each request."""
        self._answer = answer

    def behave(self, *names: str) -> None:
        """Behaves in the named ways one after another, in the last one for ever."""
        left = list(names)

        def answer(request: Request) -> Reply:
            return misbehave(left.pop(0) if len(left) > 1 else left[0], request, self.delay_seconds)

        self._answer = answer

    def fail_at_random(self, share: float, names: Sequence[str], seed: int) -> None:
        """Misbehaves with this probability, in one of the named ways; honest otherwise."""
        dice = random.Random(seed)

        def answer(request: Request) -> Reply:
            name = dice.choice(names) if dice.random() < share else "honest"
            return misbehave(name, request, self.delay_seconds)

        self._answer = answer

    @property
    def requests(self) -> list[Request]:
        return [entry.request for entry in self.books.entries]

    @property
    def keys(self) -> list[str | None]:
        return [entry.authorization for entry in self.books.entries]

    @property
    def most_at_once(self) -> int:
        return self.books.most_at_once

    def arrive(self, entry: Entry, connection: socket.socket) -> Reply:
        """Writes a request down and decides on its reply."""
        with self._lock:
            # A client that gave up may be back before the thread that served it has noticed.
            for other, socket_ in self._open:
                if _gone(socket_):
                    other.ended_seconds = min(other.ended_seconds, entry.arrived_seconds)
            self._open.append((entry, connection))
            self.books.entries.append(entry)
            reply = self._answer(entry.request)
            entry.answered, entry.status = reply.name, reply.status
            entry.asked_to_wait_seconds = _asked_to_wait(reply.headers)
            entry.prompt_tokens, entry.completion_tokens = _usage(reply, entry.request)
            return reply

    def end(self, entry: Entry, *, delivered: bool) -> None:
        """Writes down how a request ended."""
        with self._lock:
            entry.ended_seconds = min(entry.ended_seconds, time.monotonic())
            entry.delivered = delivered
            self._open = [one for one in self._open if one[0] is not entry]

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._head(200, "application/json", body := server.books.to_json(), {})
            self.wfile.write(body)

        def do_POST(self) -> None:
            arrived = time.monotonic()
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            entry = Entry(arrived, request, self.headers["Authorization"])
            reply = server.arrive(entry, self.connection)
            try:
                self._send(reply, _body(reply, request, (entry.prompt_tokens, entry.completion_tokens)), entry)
            except OSError:
                self.close_connection = True  # the client had waited long enough
                server.end(entry, delivered=False)

        def _send(self, reply: Reply, body: bytes, entry: Entry) -> None:
            self._pause(reply.delay_seconds)
            spaces = round(reply.trickle_seconds * 10)
            self._head(reply.status, reply.content_type, b" " * spaces + body, reply.headers)
            for _ in range(spaces):
                self.wfile.write(b" ")
                self._pause(0.1)
            whole = reply.sent_share == 1
            # Written down before the last byte: with it the client may already send its next request.
            server.end(entry, delivered=whole)
            self.wfile.write(body[: round(len(body) * reply.sent_share)])
            self.close_connection = self.close_connection or not whole

        def _head(self, status: int, content_type: str, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _pause(self, seconds: float) -> None:
            """Waits, while there is somebody to wait for."""
            select.select([self.connection], [], [], seconds)
            if _gone(self.connection):
                raise BrokenPipeError

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fail-share", type=float, default=0.0, help="probability that a request goes wrong")
    parser.add_argument("--fail", action="append", choices=MISBEHAVIOURS, help="in which ways; may be repeated")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="pause before each reply")
    options = parser.parse_args()
    server = JudgeServer(options.port, options.delay_seconds)
    server.fail_at_random(options.fail_share, options.fail or ["500"], options.seed)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
