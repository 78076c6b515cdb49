"""The files of the repository, without what is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_MADE = frozenset({"__pycache__", "data", "dist", "build"})
_BINARY = frozenset({".dcm", ".png", ".ico", ".gz", ".jpg", ".pdf", ".pem"})


def files(*suffixes: str) -> Iterator[Path]:
    """Every text file that belongs to the repository.

    :param suffixes: only those whose names end so
    """
    for folder, names, entries in os.walk(ROOT):
        # Hidden folders are made by tools, but for the one that holds the check itself.
        names[:] = sorted(name for name in names if name not in _MADE and (not name.startswith(".") or name == ".ci"))
        for entry in sorted(entries):
            path = Path(folder, entry)
            if path.suffix not in _BINARY and (not suffixes or path.suffix in suffixes):
                yield path


def where(path: Path, line: int) -> str:
    """A place, as editors and terminals link it."""
    return f"{path.relative_to(ROOT)}:{line}"
