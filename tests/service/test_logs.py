"""The log: one record a line, and nothing in it that belongs to a patient."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.service.logs import Format, escaped, logging_to

HOSTILE = (
    "A\nlevel=error",
    "A\r\nB",
    "A\x00B",
    "A\x1b[31mB",
    "A\x7fB",
    "A\x85B",
    "A\u2028B",
    "Ä",
    "A\u202eB",
    'A"B',
    "",
    " ",
    "a=b",
)
logger = logging.getLogger("asyncdicom.test")


def lines_of(stream: io.StringIO) -> list[str]:
    assert stream.getvalue().endswith("\n")
    return stream.getvalue()[:-1].split("\n")


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_name_of_a_peer_splits_a_record(format: Format) -> None:
    stream = io.StringIO()
    with logging_to(stream, format=format):
        for name in HOSTILE:
            logger.info("rejected %s", name, extra={"calling_ae_title": name})
    lines = lines_of(stream)
    assert len(lines) == len(HOSTILE)
    assert all(line.isascii() and line.isprintable() for line in lines)
    if format == "json":
        assert [json.loads(line)["calling_ae_title"] for line in lines] == list(HOSTILE)


@pytest.mark.parametrize(
    ("value", "text"), [("CT1", "CT1"), ("a b", '"a b"'), ("", '""'), ("a=b", '"a=b"'), (5, "5"), (None, "None")]
)
def test_a_value_is_quoted_unless_it_is_one_plain_word(value: object, text: str) -> None:
    assert escaped(value) == text


def test_a_text_record_begins_with_time_and_level() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        logger.warning("a sweep failed", extra={"sweep": "echo"})
        logger.debug("not shown")
    (line,) = lines_of(stream)
    assert line.startswith("time=2")
    assert line.endswith('Z level=warning logger=asyncdicom.test message="a sweep failed" sweep=echo')


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_told_without_its_words_unless_they_are_ours(format: Format) -> None:
    stream = io.StringIO()
    with logging_to(stream, format=format):
        for error in (
            ValueError("CANARY^JOHN"),
            OSError(28, "No space left", "CANARY^JOHN"),
            ConfigurationError("a", 1, "write 2"),
        ):
            try:
                raise error
            except Exception:
                logger.exception("failed")
        try:
            raise ExceptionGroup("CANARY^JOHN", [ExceptionGroup("CANARY^JOHN", [KeyError("CANARY^JOHN")]), error])
        except Exception:
            logger.exception("failed")
    text = stream.getvalue()
    assert "CANARY" not in text
    assert "ValueError" in text
    assert "No space left" in text
    assert "write 2" in text
    assert "KeyError, ConfigurationError" in text
    assert "test_logs.py:" in text


@pytest.mark.parametrize("name", ["pydicom", "pynetdicom", "pynetdicom.acse", "pydicom.filereader"])
def test_loggers_that_quote_datasets_are_silent(name: str) -> None:
    stream = io.StringIO()
    before = logging.getLogger(name).propagate
    with logging_to(stream, level=logging.DEBUG):
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).critical("CANARY^JOHN")
        warnings.warn("Invalid value for VR PN: CANARY^JOHN", stacklevel=1)
    assert stream.getvalue() == ""
    assert logging.getLogger(name).propagate is before
    logging.getLogger(name).setLevel(logging.NOTSET)


def test_everything_is_written_before_the_block_ends_and_put_back_after_it() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before, threads = (root.level, list(root.handlers)), threading.active_count()
    with logging_to(stream):
        for index in range(500):
            logger.info("record", extra={"index": index})
    assert len(lines_of(stream)) == 500
    assert (root.level, list(root.handlers)) == before
    assert threading.active_count() == threads


def test_a_standard_error_that_nobody_reads_does_not_hold_up_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdicom.service.logs._WAITING", 10)
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(5)
            return super().write(text)

    stream = Stuck()
    with logging_to(stream):
        for _ in range(100):
            logger.info("record")
        threading.Timer(0.05, gate.set).start()
    lines = lines_of(stream)
    assert len(lines) < 15
    assert 'message="records were dropped"' in lines[-1]
