"""P15: what a store costs as the index grows.

As a program, it is one of two. ``python -m benchmarks.index fill FOLDER ROWS`` makes an archive whose index has so many rows;
``python -m benchmarks.index store FOLDER COUNT DURABILITY`` stores instances there, and tells microseconds each.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.comparison import Figure, Readings, Row, Trial, at_most
from benchmarks.processes import Failed, module, seconds, tell, told_by
from benchmarks.setting import Setting

BARS = ("P15",)

_FEW = 1_000
# Few, so that the small index stays small; hence each turn takes the median over copies of the same index.
_STORES = 2_000
_COPIES = 3
# What is stored before the clock starts: threads and the caches of the database are there then.
_FIRST = 100
_AT_ONCE = 8
_SERIES, _STUDY = 100, 400
_INDEX = "index.db"
# The one file that all rows of the filled index name: an archive that opens drops the last rows when theirs are gone.
_HELD = "held.dcm"


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trials; an index is filled when it is first needed, and copied for every turn."""
    many = setting.index_rows
    with TemporaryDirectory(dir=setting.disk) as made:
        rows = [
            (
                durability,
                Row(
                    name=f"P15 {durability}",
                    what=f"a store's cost, us, index of {many:,}",
                    bar=at_most(1.3),
                    ours=Figure("many", "cost"),
                    theirs=Figure("few", "cost"),
                    peer=f"the same, index of {_FEW:,}",
                    setting=f"{_STORES:,} of 9 KB, {_AT_ONCE} at a time, durability {durability}, {where}",
                ),
            )
            for durability, where in (("none", "in memory"), ("full", "on the disk"))
        ]
        yield [
            Trial(
                {
                    "many": partial(_cost, setting, Path(made), many, durability),
                    "few": partial(_cost, setting, Path(made), _FEW, durability),
                },
                [row],
            )
            for durability, row in rows
        ]


def _cost(setting: Setting, made: Path, rows: int, durability: str) -> Readings:
    filled = made / str(rows)
    if not filled.exists():
        seconds([module("benchmarks.index", "fill", filled, rows)], limit=1_800)
    costs = []
    for _ in range(_COPIES):
        with setting.folder(durability) as folder:
            copy = folder / "copy"
            shutil.copytree(filled, copy)
            readings = told_by(module("benchmarks.index", "store", copy, _STORES, durability))
            # One of a million rows is too much to be kept until the end of the run.
            (copy / _INDEX).unlink()
        if readings["rows"] != rows + _FIRST + _STORES:
            raise Failed(f"the index has {readings['rows']:.0f} rows instead of {rows + _FIRST + _STORES}")
        costs.append(readings["cost"])
    return {"cost": statistics.median(costs)}


# The programs


async def _fill(folder: Path, rows: int) -> None:
    import asyncio

    from asyncdicom import Archive
    from asyncdicom.archive import Entry
    from asyncdicom.testing import synthetic_instance
    from asyncdicom.testing.instances import CT_IMAGE_STORAGE, synthetic_uid
    from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN

    def entry(number: int) -> Entry:
        return Entry(
            synthetic_uid("filled", number),
            CT_IMAGE_STORAGE,
            EXPLICIT_VR_LITTLE_ENDIAN,
            synthetic_uid("filled study", number // _STUDY),
            synthetic_uid("filled series", number // _SERIES),
            f"SIM-{number // _STUDY:06}",
            f"TEST{number // _STUDY:06}",
            "20000101",
            "CT",
            _HELD,
            9_000,
            f"{number:064x}",
            "BENCH",
            "127.0.0.1",
            float(number),
        )

    archive = Archive(folder / "archive", durability="none", index=f"sqlite:{folder / _INDEX}")
    async with archive:
        assert archive.index is not None
        (folder / "archive" / _HELD).write_bytes(synthetic_instance())
        for first in range(0, rows, 512):
            added = await asyncio.gather(*(archive.index.add(entry(number)) for number in range(first, min(first + 512, rows))))
            assert all(added)


async def _store(folder: Path, count: int, durability: str) -> tuple[float, int]:
    import asyncio

    from asyncdicom import Archive, Received
    from asyncdicom.testing import synthetic_study
    from asyncdicom.testing.content import HeldInstance

    files = (HeldInstance.read(data) for _, data in synthetic_study(_FIRST + count, series=None, seed="stored"))
    instances = [
        Received(file.dataset, file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "BENCH") for file in files
    ]
    archive = Archive(folder / "archive", durability=durability, index=f"sqlite:{folder / _INDEX}")  # type: ignore[arg-type]

    async def sender(waiting: Iterator[Received]) -> None:
        for received in waiting:
            stored = await archive.store(received)
            if stored.status != 0:
                raise RuntimeError(f"status 0x{int(stored.status):04X}")

    async def all_of(several: list[Received]) -> None:
        # One iterator for all of them: each takes the next.
        waiting = iter(several)
        async with asyncio.TaskGroup() as senders:
            for _ in range(_AT_ONCE):
                senders.create_task(sender(waiting))

    async with archive:
        await all_of(instances[:_FIRST])
        started = time.monotonic()
        await all_of(instances[_FIRST:])
        spent = time.monotonic() - started
    return spent, _rows(folder / _INDEX)


def _rows(index: Path) -> int:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(index)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM instances").fetchone()
    return int(rows)


if __name__ == "__main__":
    import asyncio

    what, where, number, *words = sys.argv[1:]
    if what == "fill":
        asyncio.run(_fill(Path(where), int(number)))
    else:
        spent, rows = asyncio.run(_store(Path(where), int(number), words[0]))
        tell(cost=1e6 * spent / int(number), rows=rows)
