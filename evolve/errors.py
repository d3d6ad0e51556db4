"""The errors of this package, and the exit code of each ending.

UserMistake (fitness.errors)   exit 2
└── ConfigError                a config file or an override that cannot be used
└── StoreError                 a run that is missing, exists already, or cannot be written
RunStopped                     exit 3: stopped by a failure, resumable
"""

from __future__ import annotations

from fitness.errors import UserMistake

EXIT_DONE = 0
EXIT_USER_MISTAKE = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130


class ConfigError(UserMistake):
    """A config file or an override cannot be used."""


class StoreError(UserMistake):
    """A run is missing, exists already, or cannot be written."""


class RunStopped(Exception):
    """A failure stopped the run; everything finished is kept and ``evolve resume`` goes on."""
