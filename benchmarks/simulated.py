"""Simulated modalities in a process of their own."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Failed, module, serving
from tests.peers.running import free_port

# Addresses that no other listener has, so that one free port is free on all of them.
_FIRST = "127.80.0.1"
_INVENTORY_WRITTEN = 30.0


@contextmanager
def simulated(folder: Path, count: int, faults: str = "") -> Iterator[Path]:
    """Have modalities listen while the block runs.

    :param folder: for their inventory; made
    :param faults: as ``asyncdicom simulate`` knows them
    :return: the inventory, as CSV
    """
    folder.mkdir()
    port, inventory = free_port(), folder / "inventory.csv"
    command = module("asyncdicom", "simulate", "--host", _FIRST, "--count", count, "--port", port, "--inventory", inventory)
    if faults:
        command += ["--faults", faults]
    with serving(command, port, host=_FIRST):
        # It is written once all of them listen.
        deadline = time.monotonic() + _INVENTORY_WRITTEN
        while not inventory.exists() or len(inventory.read_text().splitlines()) <= count:
            if time.monotonic() > deadline:
                raise Failed("the simulated modalities do not listen")
            time.sleep(0.05)
        yield inventory


def targets_of(inventory: Path) -> list[tuple[str, str, int]]:
    """AE title, host and port of each."""
    with inventory.open(newline="") as lines:
        return [(row["ae_title"], row["host"], int(row["port"])) for row in csv.DictReader(lines)]
