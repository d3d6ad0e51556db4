"""Where the data of ``configs/`` lies: beside the packages in a checkout, inside ``evolve`` in a wheel."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from evolve.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def configs_dir() -> Path:
    """The folder with ``attacks``, ``demo``, ``examples``, ``pages``, ``prompts``, ``rubrics`` and ``templates``."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def cache_dir() -> Path:
    """Where merged adapters and the demo's models are kept between runs: ``EVOLVE_CACHE``, else the user's cache."""
    if "EVOLVE_CACHE" in os.environ:
        return Path(os.environ["EVOLVE_CACHE"]).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "evolve-merge"


def refuse_foreign_packages() -> None:
    """``workers`` and ``fitness`` are common names: notice another installation's that shadows ours.

    Raises:
        ConfigError: naming the package and where it was found.
    """
    for name in ("workers", "fitness"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != _PACKAGE.parent / name:
            raise ConfigError(
                f"the package {name!r} is imported from {found or 'nowhere'}, not from {_PACKAGE.parent / name}: "
                "another installation or a folder of that name shadows ours. Run evolve from another folder, or "
                f"uninstall the other {name}."
            )
