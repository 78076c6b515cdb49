"""What the tests of the archive have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """What the archive logs, formatted.

    Kept in memory alone: pytest's own handler for a log file writes from within the event loop, to the null device.
    """
    logger = logging.getLogger("asyncdicom.archive")
    kept = _Kept()
    logger.addHandler(kept)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield kept.lines
    finally:
        logger.propagate = propagate
        logger.removeHandler(kept)
