"""Receivers of instances, each in a process of its own.

As a program, it is one of those that are written in Python:
``python -m benchmarks.receivers (ours|discarding|tutorial) PORT FOLDER DURABILITY [LAG]``.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import NODELAY, Failed, module, serving
from tests.peers.programs import program
from tests.peers.running import free_port

# What a task that looks for the loop's lag sleeps, in seconds.
LAG_INTERVAL = 0.005
_REST_TIMEOUT = 10.0
# DCMTK's storescp in its forms. It takes fragments of 16 KiB unless told otherwise.
_STORESCP: dict[str, list[str]] = {
    "storescp": ["--fork"],
    "ignoring": ["--fork", "--ignore"],
    "single": [],
    "preserving": ["+B"],
    "wide": ["+B", "--max-pdu", "131072"],
}


@dataclass(frozen=True)
class Receiver:
    """A receiver that listens.

    :ivar kept: counts the instances that it keeps; None for one that throws them away
    """

    pid: int
    port: int
    kept: Callable[[], int] | None

    def check(self, sent: int) -> None:
        """See that it keeps all that was sent.

        :raises Failed: when it does not
        """
        if self.kept is not None and (kept := self.kept()) != sent:
            raise Failed(f"{kept} of {sent} instances are kept")


@contextmanager
def receiver(name: str, folder: Path, durability: str = "none", lag: Path | None = None) -> Iterator[Receiver]:
    """Have a receiver listen while the block runs.

    :param name: ``ours``; ``discarding``, which is ours without an archive; ``tutorial``, pynetdicom's; ``Orthanc``; or one of
        those that are DCMTK's storescp
    :param folder: where it keeps what it gets; empty
    :param durability: of ours
    :param lag: where ours writes, when it ends, how late the loop was: times and delays in seconds
    """
    port = free_port()
    if name == "Orthanc":
        with _orthanc(folder, port) as receiver:
            yield receiver
        return
    if name in _STORESCP:
        argv = [program("storescp"), *_STORESCP[name], "-aet", "BENCH", "-od", str(folder), str(port)]
    else:
        argv = module("benchmarks.receivers", name, port, folder, durability, *([lag] if lag is not None else []))

    def kept() -> int:
        where, pattern = (folder / "archive", "*.dcm") if name == "ours" else (folder, "*")
        return sum(1 for path in where.rglob(pattern) if path.is_file())

    with serving(argv, port, NODELAY) as pid:
        yield Receiver(pid, port, None if name in ("discarding", "ignoring") else kept)


@contextmanager
def _orthanc(folder: Path, port: int) -> Iterator[Receiver]:
    # As it comes: it syncs each file (SyncStorageArea) and keeps its index in SQLite. Only the places are ours.
    http_port = free_port()
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomPort": port,
        "HttpPort": http_port,
        "Plugins": [],
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))

    def kept() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/statistics", timeout=_REST_TIMEOUT) as answer:
            return int(json.load(answer)["CountInstances"])

    with serving([program("Orthanc"), file], port) as pid:
        yield Receiver(pid, port, kept)


# The programs


def _serve(discards: bool, port: int, folder: Path, durability: str, lag: Path | None) -> None:
    import signal
    from contextlib import AsyncExitStack

    import anyio

    from asyncdicom import Archive, Received, StorageSCP

    async def discard(_: Received) -> int:
        return 0x0000

    async def run(late: array[float]) -> None:
        async with AsyncExitStack() as stack:
            handler: Any = discard
            if not discards:
                index = f"sqlite:{folder / 'index.db'}" if durability == "full" else None
                archive = Archive(folder / "archive", durability=durability, index=index)  # type: ignore[arg-type]
                handler = await stack.enter_async_context(archive)
            signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGTERM))
            await stack.enter_async_context(StorageSCP(handler, port=port))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            if lag is not None:
                tasks.start_soon(_watch, late)
            async for _ in signals:
                break
            tasks.cancel_scope.cancel()

    late = array("d")
    anyio.run(run, late)
    if lag is not None:
        lag.write_bytes(late.tobytes())


async def _watch(late: array[float]) -> None:
    import time

    import anyio

    while True:
        due = time.monotonic() + LAG_INTERVAL
        await anyio.sleep(LAG_INTERVAL)
        now = time.monotonic()
        late.extend((now, max(0.0, now - due)))


def _serve_tutorial(port: int, folder: Path) -> None:
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def handle(event: Any) -> int:
        with (folder / event.request.AffectedSOPInstanceUID).open("wb") as file:
            file.write(event.encoded_dataset())
        return 0x0000

    ae = AE("BENCH")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.maximum_associations = 64
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle)])


def _main(name: str, port: str, folder: str, durability: str, lag: str = "") -> None:
    if name == "tutorial":
        _serve_tutorial(int(port), Path(folder))
    else:
        _serve(name == "discarding", int(port), Path(folder), durability, Path(lag) if lag else None)


if __name__ == "__main__":
    _main(*sys.argv[1:])
