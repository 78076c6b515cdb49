"""The log of the service: one record a line, on standard error, without patient data.

What a peer calls itself is shown escaped, so that no name can split a record or pretend to be another. Exceptions are told
by their type and the places that they passed through: their text may quote a dataset. The loggers of pydicom and pynetdicom,
and Python's warnings, quote datasets too, and are silent here; so are those of httpx, which quote addresses that are secrets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any, Literal, TextIO

from asyncdicom.errors import AsyncDicomError

Format = Literal["text", "json"]

SILENCED = ("pydicom", "pynetdicom", "httpx", "httpcore")
# Records that wait for a slow standard error. Beyond it they are dropped and counted: the service goes on.
_WAITING = 10_000
# Seconds for writing what waits when the service ends.
_LAST_WORDS = 1.0
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+,%")


def escaped(value: object) -> str:
    """A value for a line of text: quoted unless it is one plain word, everything but printable ASCII escaped."""
    text = str(value)
    if text and _SAFE.issuperset(text):
        return text
    return json.dumps(text).replace("\x7f", "\\u007f")


class _Formatter(logging.Formatter):
    """Collects the fields of a record: time, level, logger, message, its ``extra``, and the exception."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a line has, in its order."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _PLAIN and not key.startswith("_"))
        if record.exc_info and record.exc_info[1] is not None:
            fields.update(_told(record.exc_info[1]))
        return fields


class TextFormatter(_Formatter):
    """``time=... level=... message="..."``: readable, and still one record a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return " ".join(f"{key}={escaped(value)}" for key, value in self.fields(record).items())


class JSONFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(self.fields(record), default=str).replace("\x7f", "\\u007f")


class _Queued(QueueHandler):
    """Hands records to the thread that writes them."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the record as it is: rendering an exception reads files, which the loop must not wait for."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it when there is no room."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(QueueListener):
    """Writes records in its thread."""

    def stop(self) -> None:
        """Write what waits, then end; a standard error that nobody reads does not hold up the end of the service."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self.queue.put(self._sentinel, timeout=_LAST_WORDS)  # type: ignore[attr-defined]
            thread.join(_LAST_WORDS)


@contextmanager
def logging_to(stream: TextIO | None = None, *, format: Format = "text", level: int = logging.INFO) -> Iterator[None]:
    """Log to a stream for the length of the block, and put everything back after it.

    :param stream: standard error by default
    :param format: ``text`` or ``json``
    :param level: the lowest level that is shown
    """
    writer = logging.StreamHandler(stream if stream is not None else sys.stderr)
    writer.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING)
    handler = _Queued(records)
    listener = _Writer(records, writer)
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    root.setLevel(level)
    root.handlers[:] = [handler]
    listener.start()
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        listener.stop()
        if handler.dropped:
            lost = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": "records were dropped"}
            writer.handle(logging.makeLogRecord({**lost, "dropped": handler.dropped}))


@contextmanager
def _silence() -> Iterator[None]:
    silenced = [logging.getLogger(name) for name in SILENCED]
    before = [(logger.propagate, list(logger.handlers), logger.level) for logger in silenced]
    for logger in silenced:
        # Their children have no handlers and hand on to these, whatever level they are set to.
        logger.propagate = False
        logger.handlers[:] = [logging.NullHandler()]
        logger.setLevel(logging.CRITICAL + 1)
    # uvicorn tells at this level that it starts and stops, in words of its own.
    uvicorn = logging.getLogger("uvicorn")
    level = uvicorn.level
    uvicorn.setLevel(logging.WARNING)
    try:
        yield
    finally:
        uvicorn.setLevel(level)
        for logger, (propagate, handlers, level) in zip(silenced, before, strict=True):
            logger.propagate = propagate
            logger.handlers[:] = handlers
            logger.setLevel(level)


def _told(error: BaseException) -> dict[str, str]:
    """An exception as fields: its own words only where they are ours, or the operating system's."""
    words = ""
    if isinstance(error, AsyncDicomError):
        words = str(error)
    elif isinstance(error, OSError) and error.strerror:
        words = error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    at = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames[-8:]))
    told = {"exception": type(error).__qualname__}
    if isinstance(error, BaseExceptionGroup):
        leaves = [f"{type(leaf).__qualname__}" for leaf in _leaves(error)]
        told["exceptions"] = ", ".join(leaves[:8])
        first = _leaves(error)[0]
        told.update({key: value for key, value in _told(first).items() if key != "exception"})
        return told
    if words:
        told["reason"] = words
    if at:
        told["at"] = at
    return told


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
