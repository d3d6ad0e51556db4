from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fitness.findings import Finding
from workers.licences import NAMES, licence_class, licences
from workers.model_facts import ModelFacts, read_facts

Cards = Callable[..., list[Finding]]


@pytest.fixture
def found(make_model: Callable[..., Path], tmp_path: Path) -> Cards:
    """Findings for models with these cards; ``None`` is a model without."""

    def check(*cards: str | None) -> list[Finding]:
        facts: list[ModelFacts] = []
        for number, card in enumerate(cards):
            folder = make_model(tmp_path / f"m{number}")
            (folder / "README.md").unlink(missing_ok=True)
            if card is not None:
                (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n", encoding="utf-8")
            facts.append(read_facts(f"m{number}", folder))
        findings = licences(facts)
        json.dumps([one.to_dict() for one in findings])
        return findings

    return check


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("cc0-1.0", "public domain"),
        ("apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("cc-by-4.0", "permissive"),
        ("bsd-3-clause", "permissive"),
        ("lgpl-3.0", "weak copyleft"),
        ("mpl-2.0", "weak copyleft"),
        ("gpl-3.0", "copyleft"),
        ("agpl-3.0", "copyleft"),
        ("cc-by-sa-4.0", "copyleft"),
        ("llama2", "community licence"),
        ("llama3.1", "community licence"),
        ("gemma", "community licence"),
        ("bigscience-openrail-m", "community licence"),
        ("bigscience-bloom-rail-1.0", "community licence"),
        ("cc-by-nc-4.0", "no commercial use"),
        ("cc-by-nc-sa-4.0", "no commercial use"),
        ("qwen-research", "no commercial use"),
        ("cc-by-nd-4.0", "no derivatives"),
        ("cc-by-nc-nd-4.0", "no derivatives"),
        ("other", "proprietary or unknown"),
        ("unknown", "proprietary or unknown"),
        ("my-own-terms", "proprietary or unknown"),
    ],
)
def test_licences_have_their_class(licence: str, name: str) -> None:
    assert NAMES[licence_class(licence)] == name


def test_permissive_licences_are_ok_and_the_strictest_is_named(found: Cards) -> None:
    (one,) = found("license: apache-2.0", "license: [mit, cc0-1.0]")
    assert one.level == "ok"
    assert one.evidence["licences"] == {"m0": ["apache-2.0"], "m1": ["mit", "cc0-1.0"]}


def test_a_missing_card_is_a_note(found: Cards) -> None:
    stated, together = found("license: apache-2.0", None)
    assert (stated.check, stated.level) == ("licence-stated", "note")
    assert stated.evidence == {"models": ["m1"]}
    assert together.level == "ok"
    (stated,) = found(None, "language: ja")
    assert stated.evidence == {"models": ["m0", "m1"]}


@pytest.mark.parametrize("card", ["license: [", "- a list", "just text"])
def test_a_broken_card_is_no_licence(found: Cards, card: str) -> None:
    assert found(card)[0].check == "licence-stated"


def test_community_licences_and_copyleft_are_notes(found: Cards) -> None:
    (one,) = found("license: llama3", "license: apache-2.0")
    assert one.level == "note"
    assert "llama3 (community licence), of m0" in one.message
    assert found("license: gpl-3.0", "license: gpl-3.0")[0].level == "note"


def test_non_commercial_among_others_is_a_note_that_names_both(found: Cards) -> None:
    (one,) = found("license: apache-2.0", "license: cc-by-nc-4.0")
    assert one.level == "note"  # the search works all the same
    assert "cc-by-nc-4.0 (no commercial use)" in one.message
    assert "apache-2.0" in one.message
    assert found("license: cc-by-nc-4.0", "license: cc-by-nc-4.0")[0].level == "note"


def test_no_derivatives_is_a_warning_even_alone(found: Cards) -> None:
    assert found("license: cc-by-nd-4.0")[0].level == "warning"


def test_other_gives_the_name_of_the_licence(found: Cards) -> None:
    (one,) = found("license: other\nlicense_name: tongyi-qianwen\nlicense_link: LICENSE")
    assert one.evidence["licences"] == {"m0": ["tongyi-qianwen"]}


def test_the_card_names_the_base(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    assert read_facts("m", folder).base_models == ()
    (folder / "README.md").write_text("---\nbase_model: org/base\n---\n")
    assert read_facts("m", folder).base_models == ("org/base",)
