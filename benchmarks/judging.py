"""What judging costs without the cache, with it, again, and after a kill -9: the demo's models, a judge over HTTP.

    python benchmarks/judging.py [--max-fevals 16] [--prompts 16] [--base-url http://localhost:8000/v1 --model NAME]

Without an address the judge is a loopback server in this process, which marks an answer by a hash of it and counts its
tokens as bytes / 4; prices are those of gpt-4o-mini. The ratio compares the calls with those of the run without cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from common.driving import Sitting, evolve
from rich.console import Console

from evolve.demo import demo_models
from evolve.resources import configs_dir

PRICE = {"input": 0.15, "output": 0.60}
PATIENCE_SECONDS = 900.0


class HashingJudge(BaseHTTPRequestHandler):
    """Marks by a hash of the answer, so that the same answer gets the same marks."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(text)
        schema = request["response_format"]["json_schema"]["schema"]
        answer = json.loads(request["messages"][1]["content"])["answer"]
        verdict = {
            name: {"reason": "by a hash", "score": 1 + hashlib.sha256((name + answer).encode()).digest()[0] % 7}
            for name in schema["properties"]
        }
        content = json.dumps(verdict)
        body = json.dumps(
            {
                "model": request["model"],
                "choices": [{"message": {"content": content}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(text) // 4, "completion_tokens": len(content) // 4},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Runs:
    """Runs of one config in one folder, with a cache of verdicts of their own."""

    def __init__(self, root: Path, config: dict[str, Any], *, cache: bool) -> None:
        self.root = root
        root.mkdir()
        config["fitness"]["judge"]["cache"] = cache
        (root / "run.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))

    def start(self, command: str, name: str) -> Sitting:
        words = (
            (command, str(self.root / "run.yaml"), "--name", name, "--force") if command == "run" else (command, name)
        )
        return Sitting((*words, "--runs-dir", str(self.root)), self.root / f"{command}-{name}")

    def whole(self, name: str, command: str = "run") -> dict[str, Any]:
        begun = time.monotonic()
        sitting = self.start(command, name)
        if sitting.wait(PATIENCE_SECONDS):
            raise SystemExit(f"the run failed: {sitting.tail()}")
        shown = json.loads(evolve("show", name, "--json", "--runs-dir", str(self.root), seconds=60))
        return {**shown["judges"][0], "seconds": time.monotonic() - begun}

    def killed_in_mid_run(self, name: str, evaluations: int) -> dict[str, Any]:
        sitting = self.start("run", name)
        transcripts = self.root / name / "transcripts"
        while not sitting.ended and len(list(transcripts.glob("*.jsonl"))) < evaluations // 2:
            time.sleep(0.005)
        if not sitting.kill():
            raise SystemExit(f"the run ended before it was killed: {sitting.tail()}")
        return self.whole(name, "resume")


def make_config(options: argparse.Namespace, base_url: str) -> dict[str, Any]:
    models = demo_models(Console(stderr=True))
    config: dict[str, Any] = yaml.safe_load((configs_dir() / "demo" / "run.yaml").read_text("utf-8"))
    config["genome"] |= {"models": [str(models.persona), str(models.facts)], "base_model": str(models.base)}
    config["budget"] = {"max_fevals": options.max_fevals}
    config["prompts"] = {
        "files": [str(configs_dir() / "demo" / "prompts.jsonl")],
        "search_limit": options.prompts,
        "validation_limit": options.prompts,
    }
    config["fitness"]["judge"] = {"model": options.model, "base_url": base_url, "price_per_million": PRICE}
    config["fitness"]["terms"] += [{"metric": "judge", "rubric": "chat-quality", "weight": 0.2}]
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--max-fevals", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16, help="per split")
    parser.add_argument("--base-url", help="a judge's server; none: one in this process")
    parser.add_argument("--model", default="gpt-4o-mini")
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), HashingJudge)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = make_config(options, options.base_url or f"http://127.0.0.1:{server.server_port}/v1")
    with tempfile.TemporaryDirectory() as folder:
        # Children find the demo's models by their paths; the verdicts lie in a cache of this benchmark's own.
        os.environ["EVOLVE_CACHE"] = str(Path(folder) / "cache")
        found = {"no cache": Runs(Path(folder) / "off", config, cache=False).whole("plain")}
        runs = Runs(Path(folder) / "on", config, cache=True)
        found["with cache, first run"] = runs.whole("first")
        found["the same run again"] = runs.whole("again")
        os.environ["EVOLVE_CACHE"] = str(Path(folder) / "cache-2")
        found["kill -9 half-way, resumed"] = runs.killed_in_mid_run("killed", options.max_fevals + 6)
    server.shutdown()
    plain = found["no cache"]["calls"]
    print(f"{'':28}{'calls':>8}{'verdicts known':>16}{'US dollars':>12}{'calls, ratio':>14}{'seconds':>9}")
    for name, one in found.items():
        ratio, seconds = one["calls"] / plain, one["seconds"]
        print(f"{name:28}{one['calls']:8}{one['cached']:16}{one['usd']:12.5f}{ratio:14.3f}{seconds:9.1f}")


if __name__ == "__main__":
    main()
