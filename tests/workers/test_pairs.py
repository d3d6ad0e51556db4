from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.findings import LEVELS, Finding, Level, worst
from workers.model_facts import ModelFacts, read_facts
from workers.pairs import Pair, PairFit, alone_findings, families, pair_fits

MakeModel = Callable[..., Path]


def facts_of(*folders: str | Path) -> list[ModelFacts]:
    return [read_facts(Path(folder).name, Path(folder)) for folder in folders]


def pair(*names: str) -> Pair:
    return frozenset(names)


def fit_of(level: Level) -> PairFit:
    return PairFit(level, () if level == "ok" else (Finding("same-shapes", level, "m", "They differ.", "Choose."),))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- two models -------------------------------------------------------------------------------------------------


def test_models_of_one_family_fit_each_other(family: Any) -> None:
    fits = pair_fits(facts_of(family.base, family.one, family.two))
    assert fits == dict.fromkeys((pair("base", "one"), pair("base", "two"), pair("one", "two")), PairFit("ok", ()))
    assert fits[pair("one", "base")].checks == ()


def test_models_of_two_families_do_not_and_the_checks_say_why(llama: Any, qwen: Any, tmp_path: Path) -> None:
    stranger = Path(shutil.copytree(qwen.one, tmp_path / "stranger"))
    fits = pair_fits(facts_of(llama.one, llama.two, stranger))
    assert fits[pair("one", "two")].level == "ok"
    for name in ("one", "two"):
        fit = fits[pair(name, "stranger")]
        assert fit.level == "error"
        assert "same-architecture" in fit.checks
        assert all(one.level != "ok" for one in fit.findings)


def test_vocabularies_that_differ_fit_with_a_tokenizer_source(
    llama: Any, make_model: MakeModel, tmp_path: Path
) -> None:
    wordy = make_model(tmp_path / "wordy", tokens=["<extra>"])
    facts = facts_of(llama.one, wordy)
    assert pair_fits(facts)[pair("one", "wordy")].level == "error"
    assert pair_fits(facts, tokenizer_source="union")[pair("one", "wordy")].level != "error"


def test_what_is_wrong_with_one_folder_is_not_said_of_its_pairs(llama: Any, tmp_path: Path) -> None:
    child = Path(shutil.copytree(llama.one, tmp_path / "child"))
    edit(child / "config.json", vocab_size=416)
    facts = facts_of(llama.base, child)
    assert "folder-is-whole" in {one.check for one in alone_findings(facts[1]) if one.level == "error"}
    assert "folder-is-whole" not in {one.check for one in pair_fits(facts)[pair("base", "child")].findings}


def test_a_model_whose_weights_cannot_be_read_fits_nobody(llama: Any, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(llama.one, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors*")))
    fits = pair_fits(facts_of(llama.base, llama.two, bare))
    assert fits[pair("base", "two")].level == "ok"
    for name in ("base", "two"):
        assert fits[pair(name, "bare")].level == "error"
        assert fits[pair(name, "bare")].checks == ("files-readable",)


def test_other_positions_are_a_warning_for_the_pair(llama: Any, tmp_path: Path) -> None:
    child = Path(shutil.copytree(llama.one, tmp_path / "child"))
    config = json.loads((child / "config.json").read_text())
    rope = {**(config.get("rope_parameters") or {"rope_type": "default"}), "rope_theta": 5e5}
    edit(child / "config.json", rope_parameters=rope, rope_theta=5e5)
    fit = pair_fits(facts_of(llama.base, child))[pair("base", "child")]
    assert (fit.level, fit.checks) == ("warning", ("same-positions",))


def test_one_model_has_no_pairs(llama: Any) -> None:
    assert pair_fits(facts_of(llama.one)) == {}
    assert pair_fits([]) == {}


def test_the_level_of_a_pair_is_its_worst_and_checks_are_those_of_that_level() -> None:
    found = (
        Finding("special-tokens", "warning", "m", "a", "b"),
        Finding("same-shapes", "error", "m", "a", "b"),
        Finding("same-shapes", "error", "m", "c", "d"),
        Finding("tied-embeddings", "error", "m", "a", "b"),
    )
    assert PairFit(worst(found), found).checks == ("same-shapes", "tied-embeddings")


# --- families ---------------------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from("abcdefg"), unique=True)


@st.composite
def some_fits(draw: st.DrawFn) -> tuple[list[str], dict[Pair, PairFit]]:
    names = draw(NAMES)
    levels = {frozenset(two): draw(st.sampled_from(LEVELS)) for two in combinations(names, 2)}
    return names, {two: fit_of(level) for two, level in levels.items()}


@given(some_fits())
def test_every_model_is_in_one_family_and_fits_its_first(drawn: tuple[list[str], dict[Pair, PairFit]]) -> None:
    names, fits = drawn
    found = families(names, fits)
    assert sorted(name for kind in found for name in kind) == sorted(names)
    assert [kind[0] for kind in found] == sorted((kind[0] for kind in found), key=names.index)
    for first, *others in found:
        assert all(fits[pair(first, other)].level != "error" for other in others)
        assert [*others] == sorted(others, key=names.index)
    for earlier, later in combinations(found, 2):
        assert fits[pair(earlier[0], later[0])].level == "error"


@given(NAMES, st.data())
def test_families_that_are_there_are_found_in_any_order(names: list[str], data: st.DataObject) -> None:
    kinds = {name: data.draw(st.integers(0, 2)) for name in names}
    fits = {
        frozenset(two): fit_of("ok" if kinds[two[0]] == kinds[two[1]] else "error") for two in combinations(names, 2)
    }
    found = families(names, fits)
    assert {frozenset(kind) for kind in found} == {
        frozenset(name for name in names if kinds[name] == kind) for kind in set(kinds.values())
    }


# --- one model --------------------------------------------------------------------------------------------------


def complaints(found: Sequence[Finding]) -> set[str]:
    return {one.check for one in found if one.level in ("warning", "error")}


def test_a_sound_model_alone_has_no_complaints(family: Any) -> None:
    (one,) = facts_of(family.one)
    found = alone_findings(one)
    assert complaints(found) == set()
    assert {"turn-ends", "same-dtype"} <= {each.check for each in found}
    assert not {each.check for each in found} & {"same-architecture", "same-shapes", "same-vocabulary"}


def test_the_folder_and_the_end_are_looked_at(llama: Any, tmp_path: Path) -> None:
    child = Path(shutil.copytree(llama.one, tmp_path / "child"))
    for name in ("config.json", "generation_config.json"):
        edit(child / name, eos_token_id=7)
    next(iter(sorted(child.glob("model-*.safetensors")))).unlink()
    seen = {one.check for one in alone_findings(*facts_of(child)) if one.level != "ok"}
    assert {"files-readable", "eos-agrees"} <= seen


@pytest.mark.parametrize("closes", [True, False])
def test_a_template_that_is_given_decides_how_turns_end(llama: Any, closes: bool) -> None:
    end = "<|end|>" if closes else "\n\n"
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}" + end + "{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    found = alone_findings(*facts_of(llama.one), chat_template=template)
    assert ("turn-ends" in complaints(found)) == (not closes), found
