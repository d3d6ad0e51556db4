"""Finds a text file that a setting names: one that we ship, or one of the user's own."""

from __future__ import annotations

from pathlib import Path

from fitness.errors import ScoringSetupError
from fitness.explain import suggestion


def read_named_text(name: str, *, suffix: str, root: Path, shipped: Path, setting: str) -> tuple[Path, str]:
    """Reads the file that ``name`` means.

    Args:
        name: a bare name is a shipped file (``shipped/name + suffix``); anything that ends in ``suffix``
            or holds a path separator is a path, relative ones against ``root``.
        suffix: such as ``.jinja``.
        root: folder against which the user's relative paths are read.
        shipped: folder of the shipped files.
        setting: dotted path of the setting, for messages.

    Returns:
        The path and the text of the file.

    Raises:
        ScoringSetupError: there is no such file, or it is not UTF-8 text.
    """
    if name.endswith(suffix) or "/" in name or "\\" in name:
        path = root / Path(name).expanduser()
        if not path.is_file():
            raise ScoringSetupError(f"{setting}: there is no file {path}")
    else:
        path = shipped / f"{name}{suffix}"
        names = [file.stem for file in shipped.glob(f"*{suffix}")] if shipped.is_dir() else []
        if name not in names:
            raise ScoringSetupError(
                f"{setting}: {name!r} is not one of the shipped ones, {suggestion(name, names)}"
                f" (a file of your own is named by a path that ends in {suffix})"
            )
    try:
        return path, path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoringSetupError(f"{setting}: cannot read {path}: {error}") from error
