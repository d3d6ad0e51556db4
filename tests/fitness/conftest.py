"""A judge's server on loopback for each test, and what scripts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fitness.judge_server import JudgeServer, Reply, verdict

CONFIGS = Path(__file__).parents[2] / "configs"


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
