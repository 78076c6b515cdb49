"""P1 to P4: instances stored a second, with DCMTK's storescu as the senders, by receivers in processes of their own.

As a program, it is one receiver: ``python -m benchmarks.store (ours|tutorial) PORT FOLDER DURABILITY``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from asyncdicom.testing import synthetic_study
from benchmarks.comparison import Comparison
from benchmarks.processes import free_port, memory_folder, module, seconds, serving

_NODELAY = {"TCP_NODELAY": "1"}
# DCMTK's default leaves Nagle's algorithm on.
_NAGLE = {"TCP_NODELAY": "0"}
# rows and columns, instances, instances when each stalls
_SIZES = {"small": (64, 1_000), "large": (512, 400)}
_STALLING = 60


@contextmanager
def comparisons() -> Iterator[list[Comparison]]:
    """The rows, with the instances to be sent made."""
    with memory_folder() as folder, TemporaryDirectory() as disk:
        files = {name: _make(folder / name, size, count) for name, (size, count) in _SIZES.items()}
        rows = []
        for size, paths in files.items():
            for name, durability, peer, bar, place in (
                ("P1", "none", "storescp --fork", {"small": 1.1, "large": 1.0}[size], folder),
                ("P3", "none", "pynetdicom's tutorial", {"small": 4.0, "large": 3.0}[size], folder),
                ("P3", "full", "pynetdicom's tutorial", 2.5, Path(disk)),
            ):
                rows.append(
                    Comparison(
                        f"{name} {size} {durability}",
                        f"stores /s, durability {durability}",
                        peer,
                        bar,
                        _rate("ours", place, durability, paths, 8, _NODELAY),
                        _rate("storescp" if "storescp" in peer else "tutorial", place, durability, paths, 8, _NODELAY),
                        "8 senders with TCP_NODELAY=1",
                    )
                )
        few = files["small"][:_STALLING]
        rows.append(
            Comparison(
                "P4 small full",
                "stores /s, durability full",
                "storescp",
                30,
                _rate("ours", Path(disk), "full", few, 1, _NAGLE),
                _rate("storescp", Path(disk), "full", few, 1, _NAGLE),
                "1 sender with DCMTK's default (Nagle on)",
            )
        )
        yield rows


def _make(folder: Path, size: int, count: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for uid, data in islice(synthetic_study(count, rows=size, columns=size), count):
        paths.append(folder / f"{uid}.dcm")
        paths[-1].write_bytes(data)
    return paths


def _rate(
    receiver: str, place: Path, durability: str, paths: list[Path], senders: int, environment: dict[str, str]
) -> Callable[[], float]:
    def measure() -> float:
        port = free_port()
        with TemporaryDirectory(dir=place) as folder, _receiver(receiver, port, Path(folder), durability):
            commands = [
                ["/usr/bin/storescu", "-aec", "BENCH", "127.0.0.1", str(port), *paths[number::senders]]
                for number in range(senders)
            ]
            spent = seconds(commands, environment)
            kept = sum(1 for path in Path(folder).rglob("*") if path.is_file() and "index" not in path.name)
            if kept != len(paths):
                raise RuntimeError(f"{receiver} kept {kept} of {len(paths)} instances")
        return len(paths) / spent

    return measure


def _receiver(name: str, port: int, folder: Path, durability: str) -> AbstractContextManager[int]:
    if name == "storescp":
        argv = ["/usr/bin/storescp", "--fork", "-aet", "BENCH", "-od", str(folder), str(port)]
        return serving(argv, port, _NODELAY)
    return serving(module("benchmarks.store", name, port, folder, durability), port)


def _serve_ours(port: int, folder: Path, durability: str) -> None:
    import anyio

    from asyncdicom import Archive, StorageSCP

    async def run() -> None:
        index = f"sqlite:{folder / 'index.db'}" if durability == "full" else None
        archive = Archive(folder / "archive", durability=durability, index=index)  # type: ignore[arg-type]
        async with archive, StorageSCP(archive, port=port):
            await anyio.sleep_forever()

    anyio.run(run)


def _serve_tutorial(port: int, folder: Path, _durability: str) -> None:
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def handle(event) -> int:  # type: ignore[no-untyped-def]
        with (folder / event.request.AffectedSOPInstanceUID).open("wb") as file:
            file.write(event.encoded_dataset())
        return 0x0000

    ae = AE("BENCH")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.maximum_associations = 64
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle)])


if __name__ == "__main__":
    side, number, where, how = sys.argv[1:]
    {"ours": _serve_ours, "tutorial": _serve_tutorial}[side](int(number), Path(where), how)
