"""The command line as a user meets it: exit codes, messages, signals, kill -9; real Ray and real engines."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Evolve = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = [sys.executable, "-c", "from evolve.cli import main; main()"]

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture
def evolve(tmp_path: Path) -> Evolve:
    """Runs ``evolve ...`` in a folder of the test's own."""

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def config_file(tmp_path: Path, config_data: dict[str, Any]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_data))
    return path


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "missing parent": (["genome.models=[/no/such/persona, /no/such/facts]"], ["/no/such/persona"]),
    "unknown method": (
        ["genome.merge_method=task_arithmetics"],
        ["genome.merge_method", "did you mean task_arithmetic"],
    ),
    "unknown parameter": (["genome.parameters={wieght: 1.0}"], ["genome.parameters.wieght", "did you mean weight"]),
    "upside-down range": (
        ["genome.parameters={weight: {min: 1, max: 0}}"],
        ["genome.parameters", "weight", "upside down"],
    ),
    "contradictory budget": (
        ["budget={max_fevals: 40, popsize: 10, generations: 6}"],
        ["budget", "40 // 10 = 4", "not 6"],
    ),
    "no budget": (["budget={}"], ["budget.max_fevals"]),
    "unreadable prompts": (["prompts.files=[no-such.jsonl]"], ["prompts.files", "no-such.jsonl"]),
    "empty split": (["prompts.validation_limit=0"], ["prompts"]),
    "unknown engine": (["workers.engine=vlm"], ["workers.engine", "vlm", "vllm"]),
    "misspelt key": (["budget={max_feval: 40}"], ["budget.max_feval", "did you mean max_fevals"]),
    "misspelt block": (["genom={}"], ["genom", "did you mean genome"]),
    "nothing to search": (["genome.parameters={weight: 0.5}"], ["nothing to search", "genome.parameters.weight"]),
    "a setting that is no setting": (["budget.max_fevals"], ["--set budget.max_fevals", "dotted.path=value"]),
    "mergekit-evolve tasks": (["tasks=[{name: gsm8k}]"], ["tasks", "lm-eval", "prompts:"]),
    "granularity that does not divide": (["genome.layer_granularity=2"], ["genome.layer_granularity", "3 layers"]),
    "unknown dtype": (["genome.dtype=float33"], ["genome.dtype", "float33", "bfloat16"]),
    "unknown out_dtype": (["genome.out_dtype=int8"], ["genome.out_dtype", "int8", "bfloat16"]),
    "too long": (["workers.max_model_len=16"], ["workers.max_model_len"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_message_and_exit_code_2(
    case: str, in_process: Callable[..., tuple[int, str, str]], config_file: Path
) -> None:
    settings, expected = WRONG[case]
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    code, out, err = in_process(
        "run", str(config_file), "--force", "--runs-dir", str(config_file.parent / "runs"), *overrides
    )
    assert code == 2, err
    assert "Traceback" not in err + out
    assert err.startswith("error: ")
    assert all(text in err.replace("'", "") for text in expected), err
    assert not list((config_file.parent / "runs").glob("*"))


def test_parents_of_different_shapes_are_refused_with_the_tensor(
    in_process: Callable[..., tuple[int, str, str]], config_file: Path, make_model: Any, tmp_path: Path, llama: Any
) -> None:
    wide = make_model(tmp_path / "wide", hidden_size=128)
    code, _, err = in_process("plan", str(config_file), "--set", f"genome.models=[{llama.one}, {wide}]")
    assert code == 2
    assert str(wide) in err
    assert "64" in err
    assert "128" in err


def test_a_misspelt_option_and_a_missing_run_are_mistakes(
    in_process: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert in_process("run", "--max-fevals", "6")[0] == 2
    code, _, err = in_process("show", "nobody", "--runs-dir", str(tmp_path))
    assert (code, err) == (2, f"error: no run named nobody in {tmp_path}; there: none. Is --runs-dir right?\n")


def test_plan_explains_and_prints_the_contract(
    in_process: Callable[..., tuple[int, str, str]], config_file: Path
) -> None:
    code, out, _ = in_process("plan", str(config_file), "--json")
    assert code == 0
    assert json.loads(out) == {
        "dimensions": 2,
        "popsize": 6,
        "generations": 2,
        "max_fevals": 16,
        "search_evaluations": 16,
        "remainder": 4,
        "baselines": 6,
        "finalists": 4,
        "total_evaluations": 26,
        "judges": [],
    }
    code, out, _ = in_process("plan", str(config_file))
    words = " ".join(out.split())
    assert code == 0
    assert "never more than 16" in words
    assert "It stops when" in words


@pytest.mark.slow
def test_the_whole_way_with_the_transformers_engine(evolve: Evolve, config_file: Path, tmp_path: Path) -> None:
    done = evolve("run", str(config_file), "--force", "--name", "r", "--set", "workers.count=2")
    assert done.returncode == 0, done.stderr
    assert "winner:" in done.stdout
    assert "r: finished" in done.stdout
    rows = json.loads(evolve("history", "r", "--json").stdout)
    assert len([row for row in rows if row["kind"] == "search"]) == 16
    assert evolve("history", "r", "--csv").stdout.count("\n") == len(rows) + 1
    recipe = yaml.safe_load(evolve("recipe", "r").stdout)
    assert recipe == json.loads(evolve("show", "r", "--json").stdout)["best"]["recipe"]
    assert "nothing to resume" in evolve("resume", "r").stdout
    assert [run["name"] for run in json.loads(evolve("runs", "--json").stdout)] == ["r"]
    exported = evolve("export", "r", "--out", "winner")
    assert exported.returncode == 0, exported.stderr
    assert {"config.json", "model.safetensors", "README.md", "mergekit_config.yml"} <= {
        path.name for path in (tmp_path / "winner").iterdir()
    }
    assert answers_of_export(tmp_path / "winner", tmp_path / "runs" / "r") == recorded_answers(tmp_path / "runs" / "r")
    assert no_processes_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "code", "engine"),
    [
        (signal.SIGINT, 130, "transformers"),
        (signal.SIGTERM, 130, "transformers"),
        pytest.param(signal.SIGKILL, -9, "vllm", marks=needs_vllm),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_history(
    kill: signal.Signals, code: int, engine: str, evolve: Evolve, config_file: Path, tmp_path: Path
) -> None:
    settings = [str(config_file), "--set", f"workers.engine={engine}"]
    whole = evolve("run", *settings, "--force", "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*COMMAND, "run", *settings, "--force", "--name", "cut"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "candidate 1.1" in line:  # in the middle of the second generation
            process.send_signal(kill)
            break
    tail = process.stdout.read()
    assert process.wait(timeout=60) == code
    if kill != signal.SIGKILL:
        assert "evolve resume cut" in tail
        assert "Traceback" not in tail
    before = {row["key"] for row in json.loads(evolve("history", "cut", "--json").stdout)}
    stamps = {key: (tmp_path / "runs/cut/transcripts" / f"{key}.jsonl").stat().st_mtime_ns for key in before}
    assert 0 < len(before) < 26
    shown = json.loads(evolve("show", "cut", "--json").stdout)
    assert shown["status"] == "interrupted"
    assert evolve("resume", "cut").returncode == 0
    assert stamps == {k: (tmp_path / "runs/cut/transcripts" / f"{k}.jsonl").stat().st_mtime_ns for k in before}
    keys = ("key", "genotype", "recipe_hash", "fitness", "parts")
    one, other = (json.loads(evolve("history", name, "--json").stdout) for name in ("whole", "cut"))
    assert [[row[k] for k in keys] for row in one] == [[row[k] for k in keys] for row in other]
    assert no_processes_left(tmp_path)


def recorded_answers(folder: Path) -> list[str]:
    """The winner's answers to the validation prompts, as the history holds them."""
    from evolve.outcome import read_answers
    from evolve.run import Run
    from evolve.views import ranking

    run = Run.open(folder.name, runs_dir=folder.parent)
    standing = ranking(run)[0].standing
    assert standing is not None
    assert standing.validation is not None
    path = standing.validation.transcript_in(run.transcripts)
    assert path is not None
    return [answer.text for answer in read_answers(path)]


def answers_of_export(model: Path, folder: Path) -> list[str]:
    """The exported model's own greedy answers to the same prompts, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evolve.run import Run

    prepared = Run.open(folder.name, runs_dir=folder.parent).prepared()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    answers = []
    for _, ids in prepared.tokens["validation"]:
        out = network.generate(torch.tensor([ids]), max_new_tokens=prepared.generation.max_new_tokens, do_sample=False)
        answers.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    return answers


def no_processes_left(folder: Path) -> bool:
    """Whether every process that was started in the folder is gone.

    After kill -9 of the driver Ray's two agents take about a minute to notice; engines are gone within seconds.
    """
    for _ in range(150):
        if not any(_works_in(pid, folder) for pid in Path("/proc").iterdir() if pid.name.isdigit()):
            return True
        time.sleep(1)
    return False


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return process.name != str(os.getpid()) and (process / "cwd").readlink() == folder
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_a_reader_that_goes_away_is_no_error(config_file: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'from evolve.cli import main; main()' plan {config_file} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert "Traceback" not in done.stderr
