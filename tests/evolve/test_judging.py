"""The judges of a run put together, against real HTTP servers; no engines."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from evolve.config import RunConfig, parse_config
from evolve.judging import Judging, cautions_of, check_judges, gpus_of, judges_of, judging, rivals_of, splits_of
from evolve.resources import configs_dir
from fitness.errors import JudgeRefused, JudgeStopped, ScoringSetupError, UserMistake
from fitness.prompts import Prompt, load_prompts
from fitness.responses import Response
from fitness.scorer import Scoring, check_scoring
from fitness.scores import Score

ANCHORS = {1: "No.", 7: "Yes."}
RUBRIC = {
    "name": "plain",
    "instructions": "You grade replies.",
    "criteria": [{"name": "right", "question": "Is it right?", "anchors": ANCHORS}],
}


@pytest.fixture
def servers(judge_module: ModuleType) -> Iterator[tuple[Any, Any]]:
    first, final = judge_module.JudgeServer(), judge_module.JudgeServer()
    yield first, final
    first.stop()
    final.stop()


@pytest.fixture
def config_of(
    tmp_path: Path, servers: tuple[Any, Any], config_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """``config_of(judge={...}, final_judge={...})``; ``judge`` is the first server's unless it says otherwise."""
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    rubric = tmp_path / "plain.yaml"
    rubric.write_text(yaml.safe_dump(RUBRIC))

    def make(judge: dict[str, Any] | None = None, final_judge: dict[str, Any] | None = None) -> RunConfig:
        fitness: dict[str, Any] = {"terms": [{"metric": "judge", "rubric": str(rubric)}]}
        usual = {"base_url": servers[0].url, "model": "judge", "max_retries": 0}
        fitness["judge"] = judge if judge and "folder" in judge else usual | (judge or {})
        if final_judge is not None:
            fitness["final_judge"] = final_judge
        return parse_config({**config_data, "fitness": fitness}, source=str(tmp_path / "run.yaml"))

    return make


def prepared(config: RunConfig) -> tuple[dict[Any, list[Prompt]], Scoring]:
    prompts = load_prompts(config.prompts, root=config.root)
    scoring = check_scoring(config.fitness, prompts=prompts, root=config.root, rubrics_dir=configs_dir() / "rubrics")
    return {split: [one for one in prompts if one.split == split] for split in ("search", "validation")}, scoring


def scores(stage: Judging, split: Any, prompts: list[Prompt], text: str) -> tuple[Score, ...]:
    answers = [Response(one.id, f"{text} {one.id}", 2, "stop") for one in prompts]
    return stage.submit(stage.scorers[split].score(prompts, answers)).result(timeout=30)


def scoring_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "scoring"]


def conversations(server: Any) -> set[str]:
    asked = [json.loads(one["messages"][1]["content"])["conversation"][-1]["content"] for one in server.requests]
    return {one for one in asked if "sky" not in one}


def test_search_answers_go_to_the_judge_and_validation_answers_to_the_final_judge_alone(
    config_of: Callable[..., RunConfig], servers: tuple[Any, Any]
) -> None:
    first, final = servers
    config = config_of(final_judge={"base_url": final.url, "model": "dearer"})
    prompts, scoring = prepared(config)
    with judging(config, scoring, {}, spending=None) as stage:
        assert stage.answers_as == {"fitness.judge": "judge-2026", "fitness.final_judge": "dearer-2026"}
        for split in prompts:
            assert all(isinstance(one.value, float) for one in scores(stage, split, prompts[split], "an answer"))
    assert conversations(first) == {one.messages[-1].content for one in prompts["search"]}
    assert conversations(final) == {one.messages[-1].content for one in prompts["validation"]}


def test_one_judge_scores_both_splits(config_of: Callable[..., RunConfig], servers: tuple[Any, Any]) -> None:
    config = config_of()
    prompts, scoring = prepared(config)
    with judging(config, scoring, {}, spending=None) as stage:
        for split in prompts:
            scores(stage, split, prompts[split], "an answer")
    assert len(conversations(servers[0])) == 8
    assert {setting: splits_of(setting, config) for setting in judges_of(config)} == {
        "fitness.judge": ("search", "validation")
    }


def test_a_second_time_costs_the_first_question_alone(
    config_of: Callable[..., RunConfig], servers: tuple[Any, Any]
) -> None:
    config = config_of()
    prompts, scoring = prepared(config)
    found = []
    for _ in range(2):
        with judging(config, scoring, {}, spending=None) as stage:
            found.append([one.value for one in scores(stage, "search", prompts["search"], "an answer")])
    assert found[0] == found[1]
    assert len(servers[0].requests) == 5 + 1


@pytest.mark.parametrize(("name", "kind"), [("401", JudgeRefused), ("404_model", JudgeRefused), ("500", JudgeStopped)])
def test_a_judge_that_cannot_be_asked_is_noticed_before_anything_is_lent(
    config_of: Callable[..., RunConfig], servers: tuple[Any, Any], name: str, kind: type[Exception]
) -> None:
    servers[0].behave(name)
    config = config_of()
    before = scoring_threads()
    with (
        pytest.raises(kind, match=r"fitness\.judge: ") as stopped,
        judging(config, prepared(config)[1], {}, spending=None),
    ):
        pytest.fail("it was lent")
    assert isinstance(stopped.value, UserMistake) == (kind is JudgeRefused)
    assert len(servers[0].requests) == 1
    assert scoring_threads() == before


def test_a_server_that_is_down_is_a_stop_and_no_mistake(config_of: Callable[..., RunConfig]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = config_of({"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"})
        with (
            pytest.raises(JudgeStopped, match="could not be reached") as stopped,
            judging(config, prepared(config)[1], {}, spending=None),
        ):
            pytest.fail("it was lent")
    assert not isinstance(stopped.value, UserMistake)


def test_calls_under_way_at_the_end_are_waited_for_and_kept(
    config_of: Callable[..., RunConfig], servers: tuple[Any, Any]
) -> None:
    config = config_of()
    prompts, scoring = prepared(config)
    answers = [Response(one.id, "an answer", 2, "stop") for one in prompts["search"]]
    with judging(config, scoring, {}, spending=None) as stage:
        servers[0].delay_seconds = 0.5
        given_up = stage.submit(stage.scorers["search"].score(prompts["search"], answers))
        while len(servers[0].requests) < 5:
            stage.submit(asyncio.sleep(0.01)).result()
        given_up.cancel()
    servers[0].delay_seconds = 0.0
    with judging(config, scoring, {}, spending=None) as stage:
        stage.submit(stage.scorers["search"].score(prompts["search"], answers)).result(timeout=30)
    assert len(servers[0].requests) == 5 + 1


def test_a_rival_is_needed_for_the_prompts_of_a_judges_own_splits(
    config_of: Callable[..., RunConfig], tmp_path: Path, servers: tuple[Any, Any]
) -> None:
    lines = [json.dumps({"prompt_id": f"q{i}", "text": "rival"}) for i in range(8)]
    searched, half = tmp_path / "search.jsonl", tmp_path / "half.jsonl"
    searched.write_text("\n".join(lines[1::2]))
    half.write_text("\n".join(lines[1:3]))
    alone = config_of({"against": [str(searched)]})
    beside = config_of({"against": [str(searched)]}, {"base_url": servers[1].url, "model": "dearer"})
    prompts = prepared(beside)[0]
    assert set(rivals_of(beside, prompts)["fitness.judge"]) == {"q1", "q3", "q5", "q7"}
    with pytest.raises(ScoringSetupError, match=r"fitness\.judge\.against: 4 of 8 prompts have no answer"):
        rivals_of(alone, prompts)
    with pytest.raises(ScoringSetupError, match=r"fitness\.judge\.against: 3 of 4 prompts.*'q3', 'q5', 'q7'"):
        rivals_of(config_of({"against": [str(half)]}, {"base_url": servers[1].url, "model": "dearer"}), prompts)


def test_a_key_or_a_folder_that_is_missing_is_a_mistake_before_anything_is_asked(
    config_of: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UserMistake, match=r"fitness\.judge\.api_key_env: .*SOME_KEY is not set"):
        check_judges(config_of({"base_url": "https://judge.example/v1", "api_key_env": "SOME_KEY"}))
    with pytest.raises(UserMistake, match=r"fitness\.judge\.folder: .*nowhere is no model folder"):
        check_judges(config_of({"folder": str(tmp_path / "nowhere")}))


def test_a_local_judge_is_known_by_its_weights(
    config_of: Callable[..., RunConfig], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    one, other = (make_model(tmp_path / name / "judge", seed=seed) for seed, name in enumerate("ab"))
    known = [check_judges(config_of({"folder": str(folder)}))["fitness.judge"] for folder in (one, other, one)]
    assert known[0] == known[2] != known[1]
    assert known[0].startswith("judge@")


def test_cautions_name_local_judges_and_a_second_opinion(
    config_of: Callable[..., RunConfig], servers: tuple[Any, Any], tmp_path: Path
) -> None:
    assert cautions_of(config_of()) == []
    (second,) = cautions_of(config_of(None, {"base_url": servers[1].url, "model": "dearer"}))
    assert "no measure of optimism" in second
    local, _ = cautions_of(config_of(None, {"folder": str(tmp_path / "small")}))
    assert local.startswith("fitness.final_judge: the local judge small")


def test_only_local_judges_reserve_gpus(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = [{}, {"folder": str(tmp_path), "gpus": 0.3}, {"folder": str(tmp_path), "gpus": 0}]
    found = [gpus_of(judges_of(config_of(one))["fitness.judge"]) for one in settings]
    assert found == [0.0, 0.3, 0.0]
