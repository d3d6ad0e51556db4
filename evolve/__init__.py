"""Searches for the best merge: genome, driver, budget, store, run loop, reports, command line.

From Python::

    config = evolve.load_config("run.yaml")
    run = evolve.Run.create(config, runs_dir="runs", name="first")
    run.execute()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evolve.config import load_config
    from evolve.run import Run

__all__ = ["Run", "load_config"]


def __getattr__(name: str) -> Any:
    """Loads what is asked for, so that importing a part of the package does not import all of it (PEP 562)."""
    if name == "Run":
        from evolve.run import Run

        return Run
    if name == "load_config":
        from evolve.config import load_config

        return load_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
