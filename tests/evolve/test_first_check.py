"""What ``evolve run`` checks before its first engine: errors end it, warnings too unless --force is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.check import check
from evolve.config import load_config
from evolve.errors import ConfigError
from evolve.first_check import checked
from evolve.resources import configs_dir
from evolve.run import Run

InProcess = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config_file(tmp_path: Path, config_data: dict[str, Any]) -> Path:
    """A run that would start, with 4 prompts of either split: two warnings."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**config_data, "budget": {"max_fevals": 4, "popsize": 4}}))
    return path


@pytest.fixture
def sound_file(config_file: Path) -> Path:
    """The same on the prompts of the demo, which are enough."""
    data = yaml.safe_load(config_file.read_text())
    data["prompts"] = {"files": [str(configs_dir() / "demo" / "prompts.jsonl")]}
    config_file.write_text(yaml.safe_dump(data))
    return config_file


def test_a_sound_config_has_no_warnings_and_says_what_it_does(sound_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = load_config(sound_file)
    runs = tmp_path / "runs"
    assert checked(config, source=sound_file, runs_dir=runs, force=False, say=said.append) == ()
    assert not [line for line in said if line.startswith("warning")]
    assert "comparing the parents' weights" in said
    assert not runs.exists()


def test_warnings_end_a_run_before_any_folder_is_made(in_process: InProcess, config_file: Path, tmp_path: Path) -> None:
    code, _, err = in_process("run", str(config_file), "--name", "r", "--runs-dir", str(tmp_path / "runs"))
    assert code == 2
    assert "2 warning(s), nothing was started." in err
    assert err.count("  warning few-prompts: prompts.files: only 4 prompts for ") == 2
    assert f"evolve check {config_file}" in err
    assert "--force" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_every_warning_comes_with_its_remedy(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    warnings = check(config, ask=False, runs_dir=tmp_path).of("warning")
    with pytest.raises(ConfigError) as caught:
        checked(config, source=config_file, runs_dir=tmp_path, force=False, say=lambda _: None)
    first, *lines, last = str(caught.value).splitlines()
    assert first == f"{config_file}: {len(warnings)} warning(s), nothing was started."
    assert last.startswith("See everything: ")
    remedies = [f". {one.remedy[:1].upper()}{one.remedy[1:]}." for one in warnings]
    assert [line.endswith(remedy) for line, remedy in zip(lines, remedies, strict=True)] == [True, True]


def test_force_goes_past_warnings_and_hands_them_on(config_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = load_config(config_file)
    found = checked(config, source=config_file, runs_dir=tmp_path, force=True, say=said.append)
    assert len(found) == 2
    assert all(one.startswith("few-prompts: prompts.files: only 4 prompts for ") for one in found)
    assert [f"warning: {one}" for one in found] == [line for line in said if line.startswith("warning: ")]


@pytest.mark.parametrize("force", [False, True])
def test_errors_end_a_run_whatever_the_user_insists_on(
    force: bool, in_process: InProcess, config_file: Path, llama: Any, tmp_path: Path
) -> None:
    models = f"genome.models=[{llama.one}, /no/such/model]"
    options = ["--force"] if force else []
    code, _, err = in_process("run", str(config_file), "--runs-dir", str(tmp_path / "runs"), "--set", models, *options)
    assert code == 2
    assert "1 error(s) and 2 warning(s), nothing was started." in err
    assert err.count("/no/such/model") >= 1
    assert "error models-found" in err
    assert err.index("error models-found") < err.index("warning few-prompts")
    assert "--force" not in err  # it would not help
    assert not (tmp_path / "runs").exists()


def test_long_names_of_models_are_shortened_in_the_message(
    make_model: Callable[..., Path], config_file: Path, llama: Any, tmp_path: Path
) -> None:
    wide = make_model(tmp_path / "wide", intermediate_size=192)
    config = load_config(config_file, [f"genome.models=[{llama.one}, {wide}]"])
    with pytest.raises(ConfigError, match=r"error same-shapes: wide: \d+ tensors differ from base"):
        checked(config, source=config_file, runs_dir=tmp_path, force=True, say=lambda _: None)


def test_a_name_that_is_taken_is_refused_before_anything_is_checked(
    in_process: InProcess, config_file: Path, tmp_path: Path
) -> None:
    Run.create(load_config(config_file), runs_dir=tmp_path / "runs", name="r")
    code, _, err = in_process("run", str(config_file), "--force", "--name", "r", "--runs-dir", str(tmp_path / "runs"))
    assert code == 2
    assert "few-prompts" not in err
    assert "comparing" not in err


def test_warnings_are_recorded_beside_the_cautions_about_judges(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    run = Run.create(config, runs_dir=tmp_path, name="r", warnings=("few-prompts: prompts.files: only 4",))
    assert run.state.warnings == ("few-prompts: prompts.files: only 4",)
    assert Run.open("r", runs_dir=tmp_path).state.warnings == run.state.warnings


@pytest.mark.slow
def test_a_forced_run_finishes_and_shows_what_it_was_warned_of(
    in_process: InProcess, config_file: Path, tmp_path: Path
) -> None:
    runs = str(tmp_path / "runs")
    code, _, err = in_process("run", str(config_file), "--force", "--name", "r", "--runs-dir", runs)
    assert code == 0, err
    assert err.count("warning: few-prompts: ") == 2
    recorded = Run.open("r", runs_dir=runs).state.warnings
    assert [one.partition(":")[0] for one in recorded[:2]] == ["few-prompts", "few-prompts"]
    code, out, _ = in_process("show", "r", "--runs-dir", runs, "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["status"] == "finished"
    assert shown["warnings"] == list(recorded)


@pytest.mark.slow
def test_a_sound_run_needs_no_force(in_process: InProcess, sound_file: Path, tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    code, _, err = in_process("run", str(sound_file), "--name", "r", "--runs-dir", runs)
    assert code == 0, err
    assert "warning" not in err
    assert not [one for one in Run.open("r", runs_dir=runs).state.warnings if one.startswith("few-prompts")]
