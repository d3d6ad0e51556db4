"""Opening a database for the history: which ones work, how, and what may be said of their address aloud."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from evolve.errors import StoreError

# Another process that reads or copies the file holds it for seconds at most; waiting is cheaper than stopping.
BUSY_SECONDS = 60

_DRIVERS = {
    "sqlite": "",
    "postgresql": "postgresql+psycopg and `pip install 'psycopg[binary]'`",
    "mysql": "mysql+pymysql and `pip install 'PyMySQL'`",
}
_SUPPORTED = (
    "sqlite:////absolute/path/history.db, postgresql+psycopg://user@host/database or mysql+pymysql://user@host/database"
)


def default_url(folder: Path) -> str:
    """SQLite in the run's folder: a commit is atomic and durable, and a dead process leaves no lock behind."""
    return URL.create("sqlite", database=str(folder.resolve() / "history.db")).render_as_string()


def open_storage(url: str) -> Any:
    """An Optuna storage, without the cache that ``optuna.create_study`` puts before it: that keeps every trial.

    SQLite keeps its rollback journal: its write-ahead log is no faster here, and unsafe on network file systems
    (https://www.sqlite.org/wal.html).

    Raises:
        StoreError: no such kind of database, its driver is missing, or it cannot be reached. Tells no password.
    """
    address = _parsed(url)
    options: dict[str, Any]
    if address.get_backend_name() == "sqlite":
        options = {"connect_args": {} if "timeout" in address.query else {"timeout": BUSY_SECONDS}}
    else:
        options = {"pool_pre_ping": True}  # an evaluation may outlast the server's patience with an idle connection
    try:
        storage = _connected(url, options)
    except ImportError:
        raise StoreError(
            f"store.url: {masked(url)} cannot be opened: its driver {address.get_driver_name()} is not installed; "
            f"use {_DRIVERS[address.get_backend_name()]}."
        ) from None
    except Exception as error:  # whatever SQLAlchemy and the database driver raise
        raise StoreError(f"store.url: {masked(url)} cannot be opened: {reason(error, url)}") from None
    # A template trial is inserted with two queries per parameter; without a flush before each it costs a quarter less.
    storage.remove_session()
    storage.scoped_session.configure(autoflush=False)
    return storage


def masked(url: str) -> str:
    """The URL with asterisks for its password."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # the latter where a port is no number
        return re.sub(r"[^/]*@", "***@", url)
    hidden = dict.fromkeys(_secrets(address), "hidden")
    if address.password is None and not hidden:
        return url
    return address.update_query_dict(hidden).render_as_string(hide_password=True)


def masked_within(data: Any, url: str) -> Any:
    """Plain data in which the URL stands masked."""
    if isinstance(data, str):
        return data.replace(url, masked(url))
    if isinstance(data, Mapping):
        return {key: masked_within(value, url) for key, value in data.items()}
    return [masked_within(value, url) for value in data] if isinstance(data, list | tuple) else data


def reason(error: BaseException, url: str) -> str:
    """What the database said, in one line and without the password."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # Optuna's own text only guesses
    said = str(getattr(error, "orig", None) or error).strip()
    line = said.splitlines()[0] if said else type(error).__name__
    address = make_url(url)
    for secret in (address.password, *_secrets(address).values()):
        line = line.replace(str(secret), "***") if secret else line
    return line


def _secrets(address: URL) -> dict[str, Any]:
    """Passwords among the options after the question mark."""
    return {name: value for name, value in address.query.items() if "pass" in name.lower()}


def _connected(url: str, options: dict[str, Any], tries: int = 5) -> Any:
    try:
        # Optuna takes the URL for a format string.
        return optuna.storages.RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)
    except SQLAlchemyError as error:
        # Another process may be making Optuna's tables at this very moment.
        if tries == 1 or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
            raise
    time.sleep(0.3)
    return _connected(url, options, tries - 1)


def _parsed(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # the latter where a port is no number
        raise StoreError(f"store.url: {masked(url)!r} is no database URL; use {_SUPPORTED}.") from None
    if address.get_backend_name() not in _DRIVERS:
        raise StoreError(f"store.url: {masked(url)} is not supported; use {_SUPPORTED}.")
    return address
