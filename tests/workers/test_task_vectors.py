from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.models import read_architecture
from workers.task_vectors import TaskVectors, compare, layer_groups

Change = Callable[[str, torch.Tensor], torch.Tensor]


def noise(scale: float, seed: int) -> Change:
    """A fine-tune's stand-in: every tensor moves a little, in a direction of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _, tensor: (
        tensor + scale * tensor.std().nan_to_num(0.1) * torch.randn(tensor.shape, generator=generator)
    )


def derive(parent: Path, folder: Path, change: Change) -> Path:
    shutil.copytree(parent, folder)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(name, tensor.float()).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vectors")
    base = make_model(root / "base", seed=0)
    found = {"base": base, "stranger": make_model(root / "stranger", seed=1)}
    found["one"] = derive(base, root / "one", noise(0.05, 1))
    found["two"] = derive(base, root / "two", noise(0.05, 2))
    found["sister"] = derive(base, root / "sister", noise(0.05, 8))
    found["instruct"] = derive(base, root / "instruct", noise(0.1, 3))
    found["chat"] = derive(found["instruct"], root / "chat", noise(0.03, 4))
    found["story"] = derive(found["instruct"], root / "story", noise(0.03, 5))
    found["almost"] = derive(found["one"], root / "almost", noise(0.0005, 6))
    found["faint"] = derive(base, root / "faint", noise(0.0001, 7))
    return found


def compared(models: Mapping[str, Path], *names: str, base: str | None = "base", **settings: int) -> TaskVectors:
    groups = layer_groups(read_architecture(models["base"]))
    return compare(names, models, base, groups, **settings)


def complaints(vectors: TaskVectors) -> list[tuple[str, str]]:
    return [(one.check, one.level) for one in vectors.findings if one.level != "ok"]


def test_sound_parents_are_equally_far_from_the_base_and_orthogonal(models: dict[str, Path]) -> None:
    vectors = compared(models, "one", "two")
    assert complaints(vectors) == []
    assert {one.check for one in vectors.findings} == {"base-plausible", "parents-differ"}
    total = vectors.total
    assert total is not None
    assert total.size[0] == pytest.approx(total.size[1], rel=0.05)
    assert total.apart[0][1] == pytest.approx(2**0.5 * total.size[0], rel=0.05)
    assert total.cosine[0][1] == pytest.approx(0, abs=0.05)
    assert total.same_sign[0][1] == pytest.approx(0.5, abs=0.02)
    assert min(total.kinship) > 0.99


def test_numbers_are_those_of_the_whole_weights(models: dict[str, Path]) -> None:
    flat = {
        name: torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(f / "model.safetensors").items())])
        for name, f in models.items()
    }
    one, chat = flat["one"] - flat["base"], flat["chat"] - flat["base"]
    vectors = compared(models, "one", "chat")
    total = vectors.total
    assert total is not None
    assert total.values == len(one) == sum(group.values for group in vectors.groups)
    assert total.size[1] == pytest.approx(float(chat.norm() / flat["base"].norm()), rel=1e-4)
    assert total.apart[0][1] == pytest.approx(float((one - chat).norm() / flat["base"].norm()), rel=1e-4)
    assert total.cosine[0][1] == pytest.approx(float(torch.cosine_similarity(one, chat, dim=0)), abs=1e-4)
    both = (one != 0) & (chat != 0)
    assert total.same_sign[0][1] == pytest.approx(float((one.sign() == chat.sign())[both].double().mean()), abs=1e-9)
    assert total.changed[0] == pytest.approx(float((one != 0).double().mean()), abs=1e-9)


def test_groups_follow_the_layers(models: dict[str, Path]) -> None:
    labels = [group.label for group in compared(models, "one").groups]
    assert labels == ["before the layers", "layer 0", "layer 1", "layer 2", "after the layers"]


def test_a_base_that_is_no_ancestor_is_found(models: dict[str, Path]) -> None:
    vectors = compared(models, "one", "two", base="stranger")
    assert complaints(vectors) == [("base-plausible", "warning")]
    assert "stranger is no ancestor of one" in vectors.findings[0].message


def test_a_parent_of_another_family_is_named_alone(models: dict[str, Path]) -> None:
    (finding,) = [one for one in compared(models, "one", "stranger").findings if one.level == "warning"]
    assert list(finding.evidence["kinship"]) == ["stranger"]


def test_a_later_ancestor_is_found(models: dict[str, Path]) -> None:
    assert complaints(compared(models, "chat", "story")) == [("base-plausible", "warning")]
    assert complaints(compared(models, "chat", "story", base="instruct")) == []


def test_a_sister_in_place_of_the_base_is_found(models: dict[str, Path]) -> None:
    vectors = compared(models, "one", "two", base="sister")
    assert vectors.total is not None
    assert vectors.total.cosine[0][1] == pytest.approx(0.5, abs=0.05)
    assert {check for check, _ in complaints(vectors)} == {"base-plausible"}


@pytest.mark.parametrize(
    ("names", "says"), [(("one", "almost"), "in one direction"), (("one", "faint"), "times as far")]
)
def test_parents_that_give_nothing_to_search_are_found(
    models: dict[str, Path], names: tuple[str, str], says: str
) -> None:
    vectors = compared(models, *names)
    assert complaints(vectors) == [("parents-differ", "warning")]
    assert says in next(one.message for one in vectors.findings if one.level == "warning")


def test_a_copy_of_the_base_or_of_a_parent_is_found(models: dict[str, Path], tmp_path: Path) -> None:
    twins = models | {"copy": models["base"], "twin": models["one"]}
    vectors = compared(twins, "one", "copy", "twin")
    messages = [one.message for one in vectors.findings if one.level == "warning"]
    assert any("copy is base itself" in one for one in messages)
    assert any("one and twin have the same weights" in one for one in messages)
    assert vectors.total is not None
    assert vectors.total.cosine[0][1] is None


def test_a_sample_tells_about_the_same(models: dict[str, Path]) -> None:
    whole, part = compared(models, "one", "chat"), compared(models, "one", "chat", max_values=20_000)
    assert whole.share == 1
    assert part.share < 1
    assert whole.total is not None
    assert part.total is not None
    assert part.total.size == pytest.approx(whole.total.size, rel=0.1)
    assert compared(models, "one", "chat", max_values=20_000).total == part.total


def test_without_a_base_relatives_are_told_from_strangers(models: dict[str, Path]) -> None:
    assert complaints(compared(models, "one", "two", base=None)) == []
    vectors = compared(models, "one", "two", "stranger", base=None)
    assert complaints(vectors) == [("parents-related", "warning")]
    assert vectors.total is not None
    assert vectors.total.cosine[1][2] is None


def test_added_tokens_do_not_hinder(models: dict[str, Path], make_model: Callable[..., Path], tmp_path: Path) -> None:
    def grow(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:2]]) if "embed" in name or "lm_head" in name else tensor

    wide = derive(models["one"], tmp_path / "wide", grow)
    vectors = compared(models | {"wide": wide}, "wide", "two")
    assert complaints(vectors) == []
    assert vectors.left_out == ()


def test_nan_and_damage_are_findings(models: dict[str, Path], tmp_path: Path) -> None:
    ill = derive(
        models["one"], tmp_path / "ill", lambda name, t: t * float("nan") if name.endswith("norm.weight") else t
    )
    assert ("weights-finite", "error") in complaints(compared(models | {"ill": ill}, "ill", "two"))
    cut = shutil.copytree(models["one"], tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert complaints(compared(models | {"cut": cut}, "cut", "two")) == [("weights-readable", "error")]
    (tmp_path / "none").mkdir()
    assert complaints(compared(models | {"none": tmp_path / "none"}, "none", "two")) == [("weights-readable", "error")]


def test_the_shipped_test_families_are_sound(family: Any) -> None:
    folders = family.folders
    base, one, two = folders
    assert complaints(compare([one, two], folders, base, {})) == []
