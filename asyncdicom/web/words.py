"""Numbers and reasons as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

from pydicom.uid import UID_dictionary

from asyncdicom.outcome import Outcome, Reason

REASONS: dict[Reason, str] = {
    Reason.OK: "Answers",
    Reason.RESOLVE_FAILED: "Host name has no address",
    Reason.CONNECT_REFUSED: "Connection refused",
    Reason.CONNECT_TIMEOUT: "No connection in time",
    Reason.TLS_FAILED: "TLS handshake failed",
    Reason.REJECTED_PERMANENT: "Association rejected",
    Reason.REJECTED_TRANSIENT: "Association rejected for now",
    Reason.NO_CONTEXT: "Service not supported",
    Reason.ASSOCIATE_TIMEOUT: "No answer to the request for association",
    Reason.OPERATION_TIMEOUT: "No answer to the operation",
    Reason.ABORTED: "Association aborted",
    Reason.CONNECTION_LOST: "Connection lost",
    Reason.PROTOCOL_ERROR: "Not speaking DICOM",
    Reason.FAILURE_STATUS: "Operation refused",
    Reason.CANCELLED: "Cancelled",
    Reason.DEADLINE: "Run ended before it answered",
    Reason.BREAKER_OPEN: "Left alone for a while",
}


def detail_of(outcome: Outcome) -> str | None:
    """What the peer said beyond the reason, None when that adds nothing."""
    detail = outcome.detail.strip()
    return detail[:1].upper() + detail[1:] if detail and not outcome.ok else None


def milliseconds(seconds: float | None) -> str:
    """``0.0123`` as ``12.3 ms``."""
    if seconds is None:
        return "–"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.001 else f"{seconds * 1000:.2f} ms"


def span(seconds: float) -> str:
    """``4000`` as ``1 h 6 min``."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def size(count: float | None) -> str:
    """``1536`` as ``1.5 KiB``."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(count: int) -> str:
    """``12345`` as ``12 345``, with narrow spaces."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def moment(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def day_and_time(at: float) -> str:
    """Seconds since the epoch in UTC, as short as it can be told within a year."""
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %H:%MZ")


def uid(value: str) -> str:
    """A UID by its name (PS3.6 Annex A), itself where it has none."""
    known = UID_dictionary.get(value)
    return known[0] if known else value
