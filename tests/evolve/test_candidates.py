"""``evolve check parents``: many possible parents compared with each other, and asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evolve.candidates import Candidates, compare_candidates
from evolve.candidates_table import candidates_table
from evolve.config import RunConfig
from evolve.tables import plain
from fitness.findings import LEVELS

MakeConfig = Callable[..., RunConfig]
InProcess = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are not folded."""
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture(scope="module")
def stranger(qwen: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of another family, with a name of its own."""
    return str(shutil.copytree(qwen.one, tmp_path_factory.mktemp("strangers") / "stranger"))


@pytest.fixture(scope="module")
def found(llama: Any, stranger: str) -> Candidates:
    """Two of one family, a stranger, and one that is not there."""
    return compare_candidates([llama.one, stranger, "/no/such/model", llama.two], None, base=llama.base)


def text_of(found: Candidates) -> str:
    return " ".join(plain(candidates_table(found), width=250).split())


# --- without asking ---------------------------------------------------------------------------------------------


def test_models_fall_into_families_and_the_missing_one_is_an_error(
    found: Candidates, llama: Any, stranger: str
) -> None:
    assert found.names == [llama.one, stranger, llama.two]
    assert found.base == llama.base
    assert found.families == [[llama.one, llama.two], [stranger]]
    (missing,) = [one for one in found.findings if one.level == "error"]
    assert (missing.check, missing.where) == ("models-found", "/no/such/model")


def test_the_fit_of_two_models_does_not_depend_on_their_order(found: Candidates) -> None:
    for a, b in combinations([*found.names, str(found.base)], 2):
        assert found.fit(a, b) is found.fit(b, a)
        assert found.fit(a, b).level in LEVELS
        assert found.cosine(a, b) == pytest.approx(found.cosine(b, a))


def test_task_vectors_are_measured_within_the_family_of_the_base(found: Candidates, llama: Any, stranger: str) -> None:
    assert found.fit(llama.one, llama.two).level == "ok"
    cosine = found.cosine(llama.one, llama.two)
    assert cosine is not None
    assert abs(cosine) < 0.3  # independent noise on one base
    assert found.size(llama.one) == pytest.approx(found.size(llama.two), rel=0.2)
    assert found.fit(llama.one, stranger).level == "error"
    assert found.cosine(llama.one, stranger) is None
    assert found.size(stranger) is None


def test_the_data_is_json_with_a_row_per_model_and_per_pair(found: Candidates) -> None:
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(data) == {"base", "models", "fits", "findings"}
    assert [one["model"] for one in data["models"]] == found.names
    for one in data["models"]:
        assert (one["fitness"], one["answers"], one["failure"]) == (None, None, None)
        assert one["findings"]
    assert [one["models"] for one in data["fits"]] == [list(two) for two in combinations(found.names, 2)]
    assert [one["level"] for one in data["fits"]] == ["error", "ok", "error"]


def test_the_table_shows_a_matrix_and_tells_two_families_apart_once(
    found: Candidates, llama: Any, stranger: str
) -> None:
    text = text_of(found)
    assert f"ok {found.cosine(llama.one, llama.two):+.2f}" in text
    assert "Fit" in text
    assert text.count("one and stranger:") == 1
    assert "two and stranger:" not in text  # they would meet the same
    assert "/no/such/model" in text
    assert "Best by itself" not in text


def test_the_base_may_stand_among_the_models(llama: Any) -> None:
    found = compare_candidates([llama.base, llama.one, llama.two], None, base=llama.base)
    assert found.families == [[llama.base, llama.one, llama.two]]
    assert found.size(llama.base) is None
    assert found.cosine(llama.base, llama.one) is None
    assert found.cosine(llama.one, llama.two) is not None
    assert "base" in text_of(found)


def test_without_a_base_there_are_no_cosines(llama: Any) -> None:
    found = compare_candidates([llama.one, llama.two], None)
    assert found.cosine(llama.one, llama.two) is None
    assert "With --base" in text_of(found)


def test_a_base_of_another_family_measures_nothing(llama: Any, stranger: str) -> None:
    found = compare_candidates([llama.one, llama.two], None, base=stranger)
    assert found.cosine(llama.one, llama.two) is None
    assert found.fit(llama.one, stranger).level == "error"


def test_a_base_that_is_not_there_is_an_error_and_the_models_are_compared_all_the_same(llama: Any) -> None:
    found = compare_candidates([llama.one, llama.two], None, base="/no/such/base")
    assert [one.where for one in found.findings if one.level == "error"] == ["/no/such/base"]
    assert {one.check for one in found.findings} == {"models-found", "licence-stated"}  # of all models together
    assert found.fit(llama.one, llama.two).level == "ok"
    json.dumps(found.to_dict())
    text_of(found)


def test_without_weights_nothing_is_measured(llama: Any) -> None:
    found = compare_candidates([llama.one, llama.two], None, base=llama.base, weights=False)
    assert found.vectors == []
    assert found.fit(llama.one, llama.two).level == "ok"


def test_one_model_under_several_spellings_is_one(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.root)
    found = compare_candidates(["one", llama.one, "./two", "two"], None, base="base")
    assert found.names == [llama.one, llama.two]
    assert found.base == llama.base


def test_the_models_of_a_config_come_first_and_its_base_is_theirs(
    make_config: MakeConfig, llama: Any, stranger: str
) -> None:
    found = compare_candidates([stranger], make_config(), ask=False)
    assert found.names == [llama.one, llama.two, stranger]
    assert found.base == llama.base
    assert found.marks == {}


def test_a_model_that_is_wrong_by_itself_is_in_no_family(llama: Any, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(llama.two, tmp_path / "bad"))
    sorted(bad.glob("model-*.safetensors"))[0].unlink()
    found = compare_candidates([llama.one, str(bad)], None, base=llama.base)
    assert found.names == [llama.one, str(bad)]
    assert found.families == [[llama.one]]
    assert "error: files-readable" in text_of(found)


def pickled(folder: Path, out: Path) -> Path:
    """The model with its weights as one pickle."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model*.safetensors*"))
    tensors = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    torch.save(tensors, out / "pytorch_model.bin")
    return out


def test_what_a_config_allows_holds_here_too_under_any_spelling(
    make_config: MakeConfig, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOLVE_CACHE", str(tmp_path / "cache"))
    old = pickled(Path(llama.two), tmp_path / "old")
    coded = Path(shutil.copytree(llama.two, tmp_path / "coded"))
    settings = json.loads((coded / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    (coded / "config.json").write_text(json.dumps(settings | own))
    (tmp_path / "links").symlink_to(tmp_path)
    models = [str(tmp_path / "links" / "old"), str(tmp_path / "links" / "coded")]
    refused = compare_candidates([], make_config(**{"genome.models": models}), ask=False, weights=False)
    assert refused.names == [str(coded)]
    assert "evolve convert" in refused.findings[0].message
    assert refused.families == []
    allowed = {"genome.allow_pickles": models[:1], "genome.allow_remote_code": models[1:]}
    found = compare_candidates([], make_config(**{"genome.models": models, **allowed}), ask=False, weights=False)
    assert found.families == [[str(old), str(coded)]]


def test_a_stop_text_of_the_config_ends_turns_as_a_token_does(
    make_config: MakeConfig, llama: Any, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    levels = []
    for stop in ([], ["user:"]):
        config = make_config(**{"chat.template": str(template), "generation.stop": stop})
        found = compare_candidates([], config, ask=False, weights=False)
        levels.append({one.level for one in found.alone[llama.one] if one.check == "turn-ends"})
    assert levels[0] & {"warning", "error"}
    assert not levels[1] & {"warning", "error"}


def test_nothing_found_at_all_is_told_without_a_table() -> None:
    found = compare_candidates(["/no/a", "/no/b"], None)
    assert found.names == []
    assert [one.where for one in found.findings] == ["/no/a", "/no/b"]
    assert found.to_dict()["models"] == []
    assert "/no/a" in text_of(found)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_ends_with_2_and_names_the_missing_model(in_process: InProcess, llama: Any, stranger: str) -> None:
    code, out, err = in_process("check", "parents", llama.one, llama.two, stranger, "/no/such/model")
    assert code == 2
    assert "/no/such/model" in out
    assert "Traceback" not in out + err
    code, out, _ = in_process("check", "parents", llama.one, "/no/such/model", "--json")
    assert code == 2
    assert json.loads(out)["findings"][0]["where"] == "/no/such/model"


def test_strangers_alone_are_no_mistake(in_process: InProcess, llama: Any, stranger: str) -> None:
    code, out, _ = in_process("check", "parents", llama.one, stranger, "--base", llama.base, "--json")
    assert code == 0
    assert [one["level"] for one in json.loads(out)["fits"]] == ["error"]


def test_set_without_a_config_is_a_mistake(in_process: InProcess, llama: Any) -> None:
    code, _, err = in_process("check", "parents", llama.one, "--set", "seed=1")
    assert code == 2
    assert "--config" in err


# --- asking -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_sound_model_gets_a_fitness_strangers_in_an_engine_of_their_own(
    in_process: InProcess, config_data: dict[str, Any], llama: Any, stranger: str, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(llama.two, tmp_path / "bad"))
    sorted(bad.glob("model-*.safetensors"))[0].unlink()
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_data))
    code, out, err = in_process(
        "check", "parents", stranger, str(bad), "--config", str(path), "--prompts", "3", "--json"
    )
    assert code == 0, err
    assert "starting an engine for 2 model(s): one, two" in err
    assert "starting an engine for 1 model(s): stranger" in err
    data = json.loads(out)
    rows = {one["model"]: one for one in data["models"]}
    assert list(rows) == [llama.one, llama.two, stranger, str(bad)]
    for name in (llama.one, llama.two, stranger):
        assert rows[name]["fitness"]["total"] == 3
        assert rows[name]["answers"]["answers"] == 3
        assert rows[name]["failure"] is None
    assert rows[str(bad)]["fitness"] is None
    assert rows[str(bad)]["answers"] is None


@pytest.mark.slow
def test_the_best_by_itself_is_named_with_those_it_can_be_merged_with(
    make_config: MakeConfig, llama: Any, stranger: str
) -> None:
    said: list[str] = []
    found = compare_candidates([stranger], make_config(), weights=False, prompts=4, say=said.append)
    assert set(found.marks) == {llama.one, llama.two, stranger}
    fitness = {name: marks.fitness.value for name, marks in found.marks.items() if marks.fitness}
    best = found.short[max(fitness, key=lambda name: fitness[name])]
    others = {"one": "two", "two": "one", "stranger": "none of the others"}
    assert f"Best by itself: {best}, on 4 answers" in text_of(found)
    assert f"It can be merged with {others[best]}." in text_of(found)
    # Answers come from the model itself: the run's own parents get the same from the same prompts.
    assert [one.prompt_id for one in found.asked[llama.one].responses] == ["q1", "q3", "q5", "q7"]


@pytest.mark.slow
def test_a_setting_that_no_engine_takes_leaves_the_comparison(make_config: MakeConfig, llama: Any) -> None:
    found = compare_candidates([], make_config(**{"workers.max_model_len": 8}), weights=False)
    assert found.fit(llama.one, llama.two).level == "ok"
    assert {name: asked.failure is not None for name, asked in found.asked.items()} == {
        llama.one: True,
        llama.two: True,
    }
    assert "workers.max_model_len" in text_of(found)
