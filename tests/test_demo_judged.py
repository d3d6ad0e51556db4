"""``make demo-judged``: the demo's search with a judge on vLLM's own server."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from evolve.resources import cache_dir

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "demo_judged.sh"
MODELS = cache_dir() / "demo-models"
SMALL = (
    "workers.engine=transformers",
    "prompts.search_limit=4",
    "prompts.validation_limit=4",
    "budget={max_fevals: 4, popsize: 4}",
)

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not (ROOT / ".venv").exists(), reason="needs vLLM in .venv"
)


def environment(cache: Path, port: int) -> dict[str, str]:
    return os.environ | {"EVOLVE_CACHE": str(cache), "PORT": str(port)}


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def spent(output: str) -> tuple[int, int]:
    """Calls and verdicts from the cache, as the demo reports them."""
    found = re.search(r"judge demo-judge: (\d+) calls, (\d+) verdicts from the cache", output)
    assert found, output[-2000:]
    return int(found[1]), int(found[2])


@needs_vllm
@pytest.mark.slow
@pytest.mark.skipif(not any(MODELS.glob("*/facts")), reason="the demo's models are not trained yet: make demo")
def test_the_demo_asks_a_judge_and_never_twice_for_the_same(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "demo-models").symlink_to(MODELS.resolve())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def demo(name: str) -> str:
        command = [str(SCRIPT), "--name", name, "--runs-dir", str(tmp_path / "runs")]
        for setting in SMALL:
            command += ["--set", setting]
        done = subprocess.run(
            command,
            env=environment(tmp_path / "cache", port),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert is_free(port)
        return done.stdout

    first, second = demo("first"), demo("second")
    assert "it proves the protocol, not judgement" in first
    calls, known = zip(spent(first), spent(second), strict=True)
    assert calls[0] > calls[1]
    # All that the second asks is whether the judge can be asked, at most six times.
    assert calls[1] <= 6
    assert known[1] > known[0]


@needs_vllm
def test_a_port_that_is_taken_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [str(SCRIPT)], env=environment(tmp_path, port), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr == f"error: port {port} is taken; free it, or name another: PORT=18644 make demo-judged.\n"
