"""P5, P6: C-ECHO with its association, many at a time over simulated modalities in a process of their own.

As a program, it is one side, and prints echoes a second:
``python -m benchmarks.echo (ours|pynetdicom) INVENTORY COUNT CONCURRENCY``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.comparison import Comparison
from benchmarks.processes import free_port, memory_folder, module, seconds, serving

_MODALITIES = 200
_ECHOES = {"ours": 2_000, "pynetdicom": 600, "echoscu": 400}
_CONCURRENCY = 64


@contextmanager
def comparisons() -> Iterator[list[Comparison]]:
    """The rows, with the simulated modalities running."""
    with memory_folder() as folder:
        port, inventory = free_port(), folder / "inventory.csv"
        command = module(
            "asyncdicom", "simulate", "--host", "127.0.0.1", "--count", _MODALITIES, "--port", port, "--inventory", inventory
        )
        with serving(command, port):
            # The inventory is written once all of them listen.
            deadline = time.monotonic() + 10
            while not inventory.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            targets = _targets(inventory)

            def side(name: str) -> float:
                argv = module("benchmarks.echo", name, inventory, _ECHOES[name], _CONCURRENCY)
                ended = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300)
                return float(ended.stdout)

            def echoscu() -> float:
                count = _ECHOES["echoscu"]
                lines = folder / "targets"
                lines.write_text("".join(f"{host} {port}\n" for _, host, port in (targets * count)[:count]))
                return count / seconds([["xargs", "-a", lines, "-P16", "-L1", "/usr/bin/echoscu"]])

            what, ours = "C-ECHO with association /s", partial(side, "ours")
            setting = f"{_CONCURRENCY} at a time over {_MODALITIES} simulated modalities"
            yield [
                Comparison("P5", what, "pynetdicom, 64 threads", 15, ours, partial(side, "pynetdicom"), setting),
                Comparison("P6", what, "echoscu, xargs -P16", 50, ours, echoscu, setting),
            ]


def _targets(inventory: Path) -> list[tuple[str, str, int]]:
    import csv

    with inventory.open(newline="") as lines:
        return [(row["ae_title"], row["host"], int(row["port"])) for row in csv.DictReader(lines)]


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

    targets = (_targets(inventory) * count)[:count]
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.monotonic()
        statuses = set(pool.map(echo, targets))
        spent = time.monotonic() - started
    if statuses != {0}:
        raise RuntimeError(f"statuses {statuses}")
    return count / spent


if __name__ == "__main__":
    side, path, number, at_once = sys.argv[1:]
    print({"ours": _ours, "pynetdicom": _pynetdicom}[side](Path(path), int(number), int(at_once)))
