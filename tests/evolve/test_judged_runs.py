"""Whole runs with a judge in the loop: stopped, capped, killed, resumed. Real servers, real engines, the CLI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import yaml

from evolve.cli import _main
from evolve.run import Run
from evolve.views import history, show_dict

COMMAND = [sys.executable, "-c", "from evolve.cli import main; main()"]
FACTS = ("key", "state", "genotype", "recipe_hash", "fitness", "stderr", "parts")
LIMIT_SECONDS = 240  # a sitting takes about 15, on a busy machine up to 90
SMALL = {
    "budget": {"max_fevals": 10, "popsize": 6},
    "finalists": {"top_k": 1},
    "baselines": {"equal_weights": False},
}
EVALUATIONS = 16  # 10 of the search, 2 parents on both splits, 2 finalists
ANSWERS = EVALUATIONS * 4
PROBE = "What colour is the sky"
PRICE = {"input": 1.0, "output": 2.0}
ANCHORS = {1: "No.", 7: "Yes."}
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [
        {"name": "right", "question": "Is it right?", "anchors": ANCHORS},
        {"name": "short", "question": "Is it short?", "anchors": ANCHORS},
    ],
}


@dataclass
class Place:
    """A folder with a run config, a judge's server, and a cache of verdicts that nobody else has."""

    folder: Path
    server: Any

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "EVOLVE_CACHE": str(self.folder / "cache"), "COLUMNS": "240"}

    def evolve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    def opened(self, name: str) -> Run:
        return Run.open(name, runs_dir=self.folder / "runs")

    def show(self, name: str) -> dict[str, Any]:
        return json.loads(json.dumps(show_dict(self.opened(name))))

    def facts(self, name: str) -> list[list[Any]]:
        return [[row[fact] for fact in FACTS] for row in history(self.opened(name))]


Open = Callable[..., Place]
InProcess = Callable[..., tuple[int, str, str]]


def config_of(folder: Path, data: dict[str, Any], judge: dict[str, Any], **fitness: Any) -> None:
    (folder / "plain.yaml").write_text(yaml.safe_dump(RUBRIC))
    fitness |= {"terms": [{"metric": "judge", "rubric": "plain.yaml"}], "judge": judge}
    (folder / "run.yaml").write_text(yaml.safe_dump({**data, **SMALL, "fitness": fitness}))


@pytest.fixture(scope="module")
def open_place(
    tmp_path_factory: pytest.TempPathFactory, config_data: dict[str, Any], judge_module: ModuleType
) -> Iterator[Open]:
    """``open_place(max_calls=20)``: a place whose judge has these settings."""
    servers = []

    def make(**judge: Any) -> Place:
        servers.append(judge_module.JudgeServer())
        place = Place(tmp_path_factory.mktemp("judged"), servers[-1])
        usual = {"base_url": servers[-1].url, "model": "judge", "max_retries": 0, "price_per_million": PRICE}
        config_of(place.folder, config_data, usual | judge)
        return place

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Runs a command that ends before it starts an engine."""

    def run(place: Place, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(place.folder)
        monkeypatch.setenv("EVOLVE_CACHE", str(place.folder / "cache"))
        monkeypatch.setenv("COLUMNS", "240")
        before, running = signal.getsignal(signal.SIGTERM), ray.is_initialized()
        try:
            code = _main(list(arguments))
        finally:
            signal.signal(signal.SIGTERM, before)
        assert ray.is_initialized() == running
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def questions(server: Any) -> Counter[str]:
    """How often each question was asked, apart from the first of a sitting."""
    sent = [json.dumps(one["messages"]) for one in server.requests]
    return Counter(one for one in sent if PROBE not in one)


def asked_again(server: Any) -> int:
    return sum(count - 1 for count in questions(server).values())


# Judges that cannot be asked


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [("401", 2, "is the key right?"), ("404_model", 2, "does it exist?"), ("no_reply", 3, "could not be reached")],
)
def test_a_judge_that_cannot_be_asked_ends_the_run_before_an_engine_starts(
    open_place: Open, in_process: InProcess, behaviour: str, code: int, said: str
) -> None:
    place = open_place()
    place.server.behave(behaviour)
    for command in (["run", "run.yaml", "--force", "--name", "r"], ["resume", "r"]):
        ended, out, err = in_process(place, *command)
        assert ended == code
        assert "asking the judge one question" in out
        assert "starting" not in out
        assert ("error: fitness.judge: " if code == 2 else "stopped: fitness.judge: ") in err
        assert said in err
        assert err.count("the judge's server") == 1
        assert "Traceback" not in out + err
    assert len(place.server.requests) == 2
    shown = json.loads(in_process(place, "show", "r", "--json")[1])
    assert shown["status"] in ("failed", "interrupted")
    assert said in shown["stop_reason"]
    assert shown["evaluations"]["complete"] == 0


def test_a_server_that_is_down_ends_the_run_with_3(open_place: Open, in_process: InProcess) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = open_place(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        code, out, err = in_process(place, "run", "run.yaml", "--force", "--name", "r")
    assert code == 3
    assert "starting" not in out
    assert "could not be reached" in err
    assert "evolve resume r" in err


def test_a_key_that_is_missing_is_noticed_by_plan(
    open_place: Open, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    place = open_place(base_url="https://judge.example/v1", api_key_env="SOME_KEY")
    code, _, err = in_process(place, "plan", "run.yaml")
    assert code == 2
    assert "fitness.judge.api_key_env" in err


# A run that is left alone, and the same once more


@pytest.fixture(scope="module")
def reference(open_place: Open) -> Place:
    place = open_place()
    done = place.evolve("run", "run.yaml", "--force", "--name", "reference")
    assert done.returncode == 0, done.stderr
    assert "asking the judge one question" in done.stdout
    return place


@pytest.fixture(scope="module")
def books(reference: Place) -> list[Any]:
    """What its server had written down at its end."""
    return list(reference.server.books.entries)


@pytest.mark.slow
def test_show_equals_the_servers_books(reference: Place, books: list[Any], in_process: InProcess) -> None:
    shown = reference.show("reference")
    (judge,) = shown["judges"]
    assert (judge["setting"], judge["answers_as"]) == ("fitness.judge", "judge-2026")
    assert judge["calls"] == len(books)
    assert judge["calls"] - 1 + judge["cached"] == ANSWERS
    assert judge["prompt_tokens"] == (sent := sum(one.prompt_tokens for one in books))
    assert judge["completion_tokens"] == (received := sum(one.completion_tokens for one in books))
    assert judge["usd"] == pytest.approx((sent * PRICE["input"] + received * PRICE["output"]) / 1e6)
    assert set(shown["length"]) == {"within", "between"}
    assert all(value is None or -1 <= value <= 1 for value in shown["length"].values())
    words = in_process(reference, "show", "reference")[1]
    assert f"judge judge-2026: {len(books)} calls, {judge['cached']} verdicts from the cache" in words
    assert "Optimism (search minus validation" in words


@pytest.mark.slow
def test_the_plan_was_not_below_what_was_asked(reference: Place, books: list[Any], in_process: InProcess) -> None:
    code, out, _ = in_process(reference, "plan", "run.yaml", "--json")
    (plan,) = json.loads(out)["judges"]
    assert code == 0
    assert (plan["answers"], plan["calls"]) == (ANSWERS, ANSWERS)
    assert len(books) - 1 <= plan["calls"]
    assert sum(one.prompt_tokens for one in books) <= plan["prompt_tokens"]


@pytest.mark.slow
def test_the_same_run_under_another_name_pays_one_call(reference: Place, books: list[Any]) -> None:
    assert reference.evolve("run", "run.yaml", "--force", "--name", "again").returncode == 0
    assert len(reference.server.requests) == len(books) + 1
    (judge,) = reference.show("again")["judges"]
    assert (judge["calls"], judge["cached"]) == (1, ANSWERS)
    assert reference.facts("again") == reference.facts("reference")


# Caps


@pytest.mark.slow
def test_a_cap_on_calls_pauses_a_run_that_had_a_wrong_key_before(
    open_place: Open, in_process: InProcess, reference: Place
) -> None:
    place = open_place(max_calls=30)
    place.server.behave("401")
    assert in_process(place, "run", "run.yaml", "--force", "--name", "capped")[0] == 2
    place.server.behave("honest")
    stopped = place.evolve("resume", "capped")
    assert stopped.returncode == 3, stopped.stderr
    assert len(place.server.requests) == 30
    assert "fitness.judge.max_calls: the cap of 30 calls is reached" in stopped.stderr
    assert "--set fitness.judge.max_calls=" in stopped.stderr
    assert "Traceback" not in stopped.stdout + stopped.stderr
    shown = place.show("capped")
    assert shown["status"] == "interrupted"
    assert "fitness.judge.max_calls" in shown["stop_reason"]
    assert shown["judges"][0]["calls"] == 30
    resumed = place.evolve("resume", "capped", "--set", "fitness.judge.max_calls=1000")
    assert resumed.returncode == 0, resumed.stderr
    assert asked_again(place.server) == 0
    assert place.facts("capped") == reference.facts("reference")
    (judge,) = place.show("capped")["judges"]
    assert judge["calls"] == len(place.server.requests)


@dataclass
class Pair:
    """A run with two judges, paused by the first one's cap, whose server is another when the run goes on."""

    place: Place
    final: Any
    paused: subprocess.CompletedProcess[str]
    usd_when_paused: float
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def pair(open_place: Open, judge_module: ModuleType, config_data: dict[str, Any]) -> Iterator[Pair]:
    place, final = open_place(), judge_module.JudgeServer()
    first = {"base_url": place.server.url, "model": "judge", "price_per_million": PRICE, "max_usd": 0.015}
    config_of(place.folder, config_data, first, final_judge={"base_url": final.url, "model": "dearer"})
    paused = place.evolve("run", "run.yaml", "--force", "--name", "pair")
    usd = place.server.books.billed_usd(PRICE["input"], PRICE["output"])
    place.server.script_each(lambda request: renamed(judge_module, request))
    resumed = place.evolve("resume", "pair", "--set", "fitness.judge.max_usd=9")
    yield Pair(place, final, paused, usd, resumed)
    final.stop()


def renamed(judge_module: ModuleType, request: dict[str, Any]) -> Any:
    message = {"role": "assistant", "content": judge_module.honest(request).text}
    body = {
        "id": "x",
        "object": "chat.completion",
        "model": "judge-2027",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return judge_module.Reply(body=json.dumps(body).encode())


@pytest.mark.slow
def test_a_cap_in_dollars_pauses_a_run_below_it(pair: Pair) -> None:
    assert pair.paused.returncode == 3, pair.paused.stderr
    assert "fitness.judge.max_usd: the cap of $0.015 leaves too little" in pair.paused.stderr
    assert "--set fitness.judge.max_usd=" in pair.paused.stderr
    assert 0 < pair.usd_when_paused <= 0.015
    assert pair.resumed.returncode == 0, pair.resumed.stderr


@pytest.mark.slow
def test_a_judge_that_answers_under_another_name_is_a_warning(pair: Pair, in_process: InProcess) -> None:
    text = "fitness.judge: its server answered as judge-2026 when the run began, and as judge-2027 now"
    assert f"warning: {text}" in " ".join(pair.resumed.stdout.split())
    (found,) = [one for one in pair.place.show("pair")["warnings"] if one.startswith(text)]
    assert found.endswith("Scores before and after are those of two judges.")
    assert text in " ".join(in_process(pair.place, "show", "pair")[1].split())


@pytest.mark.slow
def test_each_judge_is_asked_of_its_own_split_alone(pair: Pair, judge_module: ModuleType) -> None:
    def countries(requests: Sequence[Any]) -> set[int]:
        asked = [judge_module.read_question(one)["conversation"][-1]["content"] for one in requests]
        return {int(text.removesuffix("?").split()[-1]) for text in asked if PROBE not in text}

    assert countries(pair.place.server.requests) == {1, 3, 5, 7}
    assert countries(pair.final.requests) == {0, 2, 4, 6}
    shown = pair.place.show("pair")["judges"]
    assert {one["setting"]: one["calls"] for one in shown} == {
        "fitness.judge": len(pair.place.server.requests),
        "fitness.final_judge": len(pair.final.requests),
    }


@pytest.mark.slow
def test_two_judges_leave_no_measure_of_optimism(pair: Pair, in_process: InProcess) -> None:
    words = " ".join(in_process(pair.place, "show", "pair")[1].split())
    assert "Optimism (search minus" not in words
    assert "no measure of optimism" in words
    assert pair.place.show("pair")["best"]["optimism"] is None


# Kills


@pytest.mark.slow
def test_a_kill_while_judging_repeats_the_calls_under_way_at_most(open_place: Open, reference: Place) -> None:
    at_once = 3
    place = open_place(max_concurrency=at_once)
    place.server.delay_seconds = 0.15
    process = subprocess.Popen(
        [*COMMAND, "run", "run.yaml", "--force", "--name", "killed"],
        cwd=place.folder,
        env=place.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + LIMIT_SECONDS
    while len(place.server.requests) < 25 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    place.server.delay_seconds = 0.0
    resumed = place.evolve("resume", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert asked_again(place.server) <= at_once
    assert place.facts("killed") == reference.facts("reference")
    (judge,) = place.show("killed")["judges"]
    assert judge["calls"] == len(place.server.requests)


# A judge without a server


@pytest.mark.slow
def test_a_run_with_a_local_judge_finishes_and_says_what_it_is(
    tmp_path: Path, config_data: dict[str, Any], make_model: Callable[..., Path], in_process: InProcess
) -> None:
    make_model(tmp_path / "small-judge", max_position_embeddings=8192)
    config_of(tmp_path, config_data, {"folder": "small-judge", "engine": "transformers", "gpus": 0})
    place = Place(tmp_path, None)
    caution = "fitness.judge: the local judge small-judge scores by the expected value over its grade tokens"
    assert caution in " ".join(in_process(place, "plan", "run.yaml")[1].split())
    done = place.evolve("run", "run.yaml", "--force", "--name", "r")
    assert done.returncode == 0, done.stderr
    assert "starting the local judge small-judge" in done.stdout
    shown = place.show("r")
    assert shown["warnings"][0].startswith(caution)
    assert all(one.startswith(("few-prompts", "answers-end")) for one in shown["warnings"][1:])
    (judge,) = shown["judges"]
    assert judge["answers_as"].startswith("small-judge@")
    assert (judge["calls"], judge["usd"]) == (0, 0.0)
    rows = history(place.opened("r"))
    assert len(rows) == EVALUATIONS
    assert all(row["state"] == "complete" and 0 <= row["fitness"] <= 1 for row in rows)
    assert len({row["fitness"] for row in rows}) > 1
