"""P5, P6: C-ECHO with its association, many at a time over simulated modalities in a process of their own.

As a program, it is one side, and tells echoes a second:
``python -m benchmarks.echo (ours|pynetdicom) INVENTORY COUNT CONCURRENCY``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.comparison import Figure, Readings, Row, Trial, at_least
from benchmarks.processes import module, seconds, tell, told_by
from benchmarks.setting import Setting
from benchmarks.simulated import simulated, targets_of
from tests.peers.programs import program

BARS = ("P5", "P6")

_MODALITIES = 1_000
_ECHOES = {"ours": 4_000, "pynetdicom": 1_000, "echoscu": 400}
_CONCURRENCY = 64


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trial, with the simulated modalities running."""
    with simulated(setting.memory / "echo", _MODALITIES) as inventory:
        targets = targets_of(inventory)

        def library(name: str) -> Readings:
            return told_by(module("benchmarks.echo", name, inventory, _ECHOES[name], _CONCURRENCY))

        def echoscu() -> Readings:
            count = _ECHOES["echoscu"]
            lines = inventory.with_name("targets")
            lines.write_text("".join(f"{host} {port}\n" for _, host, port in (targets * count)[:count]))
            return {"rate": count / seconds([["xargs", "-a", lines, "-P16", "-L1", program("echoscu")]])}

        sides = {"ours": lambda: library("ours"), "pynetdicom": lambda: library("pynetdicom"), "echoscu": echoscu}
        rows = [
            Row(
                name=name,
                what="C-ECHO with association /s",
                bar=at_least(bar),
                ours=Figure("ours", "rate"),
                theirs=Figure(side, "rate"),
                peer=peer,
                setting=f"{_CONCURRENCY} at a time over {_MODALITIES:,} simulated modalities",
            )
            for name, bar, side, peer in (
                ("P5", 15, "pynetdicom", f"pynetdicom, {_CONCURRENCY} threads"),
                ("P6", 50, "echoscu", "echoscu, xargs -P16"),
            )
        ]
        yield [Trial(sides, rows)]


# The programs


def _ours(inventory: Path, count: int, concurrency: int) -> float:
    import anyio

    from asyncdicom import Fleet

    async def run() -> float:
        async with Fleet.load(inventory, concurrency=concurrency, per_modality=4, deadline=None) as fleet:
            targets = (list(fleet.modalities) * count)[:count]
            started = time.monotonic()
            wrong = [outcome async for outcome in fleet.echo(targets) if not outcome.ok]
            spent = time.monotonic() - started
        if wrong:
            raise RuntimeError(f"{len(wrong)} echoes failed, the first by {wrong[0].reason}: {wrong[0].detail}")
        return count / spent

    return anyio.run(run)


def _pynetdicom(inventory: Path, count: int, concurrency: int) -> float:
    from concurrent.futures import ThreadPoolExecutor

    from pynetdicom import AE

    ae = AE("BENCH")
    ae.add_requested_context("1.2.840.10008.1.1")

    def echo(target: tuple[str, str, int]) -> int:
        title, host, port = target
        association = ae.associate(host, port, ae_title=title)
        if not association.is_established:
            raise RuntimeError("no association")
        status = association.send_c_echo()
        association.release()
        return int(status.Status)

    targets = (targets_of(inventory) * count)[:count]
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.monotonic()
        statuses = set(pool.map(echo, targets))
        spent = time.monotonic() - started
    if statuses != {0}:
        raise RuntimeError(f"statuses {statuses}")
    return count / spent


if __name__ == "__main__":
    side, path, number, at_once = sys.argv[1:]
    tell(rate={"ours": _ours, "pynetdicom": _pynetdicom}[side](Path(path), int(number), int(at_once)))
