"""P8, P9: matches of C-FIND a second, on one association and from many archives at once.

As a program, it is one side: ``python -m benchmarks.find (ours|pynetdicom) PORT ARCHIVES MATCHES`` asks many archives at once
and merges what they tell; ``python -m benchmarks.find discarding PORT AE_TITLE`` asks one, and throws away what it tells.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.answering import KEYWORDS, STUDY_ROOT_FIND, ae_title, answer, answering
from benchmarks.comparison import Figure, Measure, Readings, Row, Trial, at_least
from benchmarks.processes import Failed, module, tell, told_by
from benchmarks.setting import Setting
from tests.peers.programs import program

BARS = ("P8", "P9")

_MATCHES = 10_000
# Empty answers of which the median is what starting up takes.
_EMPTY = 3
_ARCHIVES = 50
_EACH = 2_000
_LIMIT = 300.0
_KEYS = tuple(keyword for keyword in KEYWORDS if keyword != "QueryRetrieveLevel")


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trials, with the SCP running that answers all of them."""
    with answering() as port:
        yield [_one(setting, port), _many(port)]


def _one(setting: Setting, port: int) -> Trial:
    output = setting.memory / "matches"

    def ours(count: int) -> list[str]:
        keys = [word for keyword in _KEYS for word in ("-k", keyword)]
        target = f"{ae_title(0, count)}@127.0.0.1:{port}"
        return module("asyncdicom", "find", target, "--level", "study", *keys, "--json")

    def findscu(count: int) -> list[str]:
        keys = [word for keyword in _KEYS for word in ("-k", keyword)]
        words = ["-S", "-aec", ae_title(0, count), "-k", "QueryRetrieveLevel=STUDY", *keys]
        return [program("findscu"), *words, "127.0.0.1", str(port)]

    def measured(command: Callable[[int], list[str]], sign: bytes) -> Readings:
        empty = statistics.median(_written(command(0), output, sign, 0) for _ in range(_EMPTY))
        spent = _written(command(_MATCHES), output, sign, _MATCHES)
        if spent <= empty:
            raise Failed(f"{_MATCHES} matches took no longer than none: {spent:.3f} s")
        return {"rate": _MATCHES / (spent - empty), "start": empty}

    sides: dict[str, Measure] = {
        "ours": partial(measured, ours, b'"0020000D"'),
        "findscu": partial(measured, findscu, b"(0020,000d)"),
        "discarding": lambda: told_by(module("benchmarks.find", "discarding", port, ae_title(0, _MATCHES))),
    }
    words = f"{_MATCHES:,} matches of {len(KEYWORDS)} attributes into a file, start-up counted out"
    rows = [
        Row(
            name="P8",
            what="C-FIND matches /s, find --json",
            bar=at_least(1.25),
            ours=Figure("ours", "rate"),
            theirs=Figure("findscu", "rate"),
            peer="findscu",
            setting=words,
        ),
        Row(
            name="P8 limit",
            what="matches /s, thrown away unread",
            bar=None,
            ours=Figure("discarding", "rate"),
            theirs=Figure("findscu", "rate"),
            peer="findscu",
            setting="how fast the SCP that answers can go",
        ),
    ]
    return Trial(sides, rows)


def _written(command: Sequence[str], output: Path, sign: bytes, count: int) -> float:
    """Seconds that a query takes, its answer written into a file.

    :param sign: what stands there once for each match, besides the query itself
    """
    # DCMTK's programs write to their log, which is standard error.
    with output.open("wb") as file:
        started = time.monotonic()
        status = subprocess.run(command, stdout=file, stderr=file, timeout=_LIMIT, check=False).returncode
        spent = time.monotonic() - started
    text = output.read_bytes()
    output.unlink()
    if status != 0 or text.count(sign) != count:
        raise Failed(f"{command[0]} ended with {status} and {text.count(sign)} of {count} matches: {text[-200:]!r}")
    return spent


def _many(port: int) -> Trial:
    def side(name: str) -> Readings:
        return told_by(module("benchmarks.find", name, port, _ARCHIVES, _EACH))

    row = Row(
        name="P9",
        what="C-FIND matches /s, merged",
        bar=at_least(12),
        ours=Figure("ours", "rate"),
        theirs=Figure("pynetdicom", "rate"),
        peer=f"pynetdicom, {_ARCHIVES} threads",
        setting=f"{_ARCHIVES} archives x {_EACH:,} matches of {len(KEYWORDS)} attributes, each study in two archives",
    )
    return Trial({"ours": partial(side, "ours"), "pynetdicom": partial(side, "pynetdicom")}, [row])


# The programs


def _titles(archives: int, matches: int) -> list[str]:
    """Archives of which neighbours share half of their studies."""
    return [ae_title(number * matches // 2, matches) for number in range(archives)]


def _distinct(archives: int, matches: int) -> int:
    return (archives - 1) * (matches // 2) + matches


def _ours(port: int, archives: int, matches: int) -> float:
    import anyio

    from asyncdicom import Fleet, Modality, Query

    modalities = [Modality(title, title, "127.0.0.1", port) for title in _titles(archives, matches)]
    query = Query("study", dict.fromkeys(_KEYS, ""))

    async def run() -> tuple[int, float]:
        async with Fleet(modalities, concurrency=archives) as fleet:
            started = time.monotonic()
            found = fleet.find(query, merge=True)
            merged = [match async for match in found]
            spent = time.monotonic() - started
        failed = [outcome for outcome in found.outcomes.values() if not outcome.ok]
        if failed:
            raise RuntimeError(f"{len(failed)} archives failed, the first by {failed[0].reason}: {failed[0].detail}")
        return len(merged), spent

    merged, spent = anyio.run(run)
    if merged != _distinct(archives, matches):
        raise RuntimeError(f"{merged} studies instead of {_distinct(archives, matches)}")
    return archives * matches / spent


def _pynetdicom(port: int, archives: int, matches: int) -> float:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Lock

    from pydicom.dataset import Dataset
    from pynetdicom import AE

    ae = AE("BENCH")
    ae.add_requested_context(STUDY_ROOT_FIND)
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    for keyword in _KEYS:
        setattr(query, keyword, None)
    merged: dict[str, tuple[Dataset, list[str]]] = {}
    merging = Lock()

    def find(title: str) -> None:
        association = ae.associate("127.0.0.1", port, ae_title=title)
        if not association.is_established:
            raise RuntimeError("no association")
        status = 0xC000
        for told, identifier in association.send_c_find(query, STUDY_ROOT_FIND):
            status = int(told.Status)
            if identifier is not None:
                uid = str(identifier.StudyInstanceUID)
                with merging:
                    merged.setdefault(uid, (identifier, []))[1].append(title)
        association.release()
        if status != 0:
            raise RuntimeError(f"status 0x{status:04X}")

    with ThreadPoolExecutor(archives) as pool:
        started = time.monotonic()
        for _ in pool.map(find, _titles(archives, matches)):
            pass
        spent = time.monotonic() - started
    if len(merged) != _distinct(archives, matches):
        raise RuntimeError(f"{len(merged)} studies instead of {_distinct(archives, matches)}")
    return archives * matches / spent


def _discarding(port: int, called: str) -> float:
    """Ask for everything and for release at once, and read until the SCP closes."""
    from asyncdicom.association.query import Query
    from asyncdicom.upper_layer import message, negotiation, pdu
    from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, PresentationContext

    contexts, _ = negotiation.propose([PresentationContext(STUDY_ROOT_FIND, (EXPLICIT_VR_LITTLE_ENDIAN,))])
    request = negotiation.encode_request(negotiation.AssociateRequest(called, "BENCH", contexts))
    command = message.request(message.CommandField.C_FIND_RQ, 1, STUDY_ROOT_FIND, dataset=True)
    identifier = Query("study", dict.fromkeys(_KEYS, "")).encode(EXPLICIT_VR_LITTLE_ENDIAN)
    question = pdu.encode_message(1, message.encode_command(command), identifier, max_length=0)
    room = bytearray(1 << 18)
    with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        if connection.recv_into(room) == 0:
            raise RuntimeError("no association")
        started = time.monotonic()
        connection.sendall(question + pdu.encode_release_rq())
        taken = 0
        while received := connection.recv_into(room):
            taken += received
        spent = time.monotonic() - started
    expected = len(answer(called, 1, 1)) + len(pdu.encode_release_rp())
    if taken != expected:
        raise RuntimeError(f"{taken} bytes instead of {expected}")
    return int(called.partition("-")[2]) / spent


if __name__ == "__main__":
    name, number, *words = sys.argv[1:]
    if name == "discarding":
        tell(rate=_discarding(int(number), words[0]))
    else:
        tell(rate={"ours": _ours, "pynetdicom": _pynetdicom}[name](int(number), int(words[0]), int(words[1])))
