"""Every run config under configs/ is parsed and planned, with tiny models in the place of those it names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.config import load_config, read_yaml
from evolve.prepare import prepare
from evolve.resources import configs_dir
from fitness.chat import read_template
from fitness.prompts import PromptsConfig, load_prompts
from fitness.rubric import load_rubric

CONFIGS = configs_dir()
RUN_CONFIGS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if isinstance(data := yaml.safe_load(path.read_text(encoding="utf-8")), dict) and "genome" in data
)
DEPTHS = {"llama-2-7b": 32, "llama-2-13b": 40}


def test_there_are_examples_and_a_demo() -> None:
    names = {path.relative_to(CONFIGS).as_posix() for path in RUN_CONFIGS}
    assert "demo/run.yaml" in names
    assert len(names) >= 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Callable[[str, int], str]:
    """A tiny model per name and depth, made once."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(name: str, layers: int) -> str:
        out = root / f"{name.replace('/', '--')}-{layers}"
        if not out.exists():
            make_model(
                out,
                seed=len(list(root.iterdir())),
                hidden_size=32,
                intermediate_size=32,
                num_attention_heads=1,
                num_key_value_heads=1,
                num_hidden_layers=layers,
                max_position_embeddings=4096,
            )
        return str(out)

    return folder


def layers_of(genome: dict[str, Any]) -> int:
    """As many layers as the models of the config have."""
    base = str(genome.get("base_model", "")).lower()
    default = 4 if "demo-models" in base else 32
    return next((depth for name, depth in DEPTHS.items() if name in base), default)


def swapped(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: swapped(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [swapped(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_run_config_is_planned(
    path: Path, tiny: Callable[[str, int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    data = read_yaml(path)
    genome = data["genome"]
    if data.get("workers", {}).get("tensor_parallel_size", 1) > 1 and importlib.util.find_spec("vllm") is None:
        pytest.skip("tensor_parallel_size above 1 needs vLLM, which is not installed")
    depth = layers_of(genome)
    # The demo's placeholders end in names, the examples' are hub ids; each gets a folder of its own.
    names = {name: tiny(name, depth) for name in (*genome["models"], genome.get("base_model")) if name}
    local = tmp_path / "run.yaml"
    local.write_text(yaml.safe_dump({**swapped(data, names), "root": str(path.parent)}), encoding="utf-8")

    assert load_config(path)  # as it stands
    prepared = prepare(load_config(local), tmp_path / "work")

    plan, budget = prepared.plan, prepared.config.budget
    assert plan.dimensions == prepared.genome.dimensions
    assert plan.search_evaluations == plan.generations * plan.popsize + plan.remainder
    assert plan.generations == plan.max_fevals // plan.popsize
    assert budget.max_fevals is None or plan.search_evaluations == budget.max_fevals
    assert all(prepared.prompts[split] for split in prepared.prompts)


@pytest.mark.parametrize("path", sorted((CONFIGS / "rubrics").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_rubric_is_read(path: Path) -> None:
    rubric = load_rubric(path.stem, root=Path(), shipped=path.parent, setting="test")
    assert rubric.name == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "templates").glob("*.jinja")), ids=lambda path: path.stem)
def test_shipped_template_is_read(path: Path) -> None:
    assert read_template(path.stem, root=Path(), shipped=path.parent)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.jsonl")), ids=lambda path: path.parent.name)
def test_shipped_prompts_have_both_splits(path: Path) -> None:
    prompts = load_prompts(PromptsConfig(files=(path,)), root=Path())
    assert {prompt.split for prompt in prompts} == {"search", "validation"}
