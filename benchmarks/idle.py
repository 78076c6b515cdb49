"""P10: what a thousand idle associations cost the storage SCP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from asyncdicom.errors import AsyncDicomError
from asyncdicom.testing import Wire
from asyncdicom.testing.instances import CT_IMAGE_STORAGE, MR_IMAGE_STORAGE, SECONDARY_CAPTURE
from asyncdicom.upper_layer.context import VERIFICATION, PresentationContext
from benchmarks.comparison import Figure, Readings, Row, Trial, at_most
from benchmarks.processes import Failed, cpu_seconds, resident
from benchmarks.receivers import receiver
from benchmarks.setting import Setting

BARS = ("P10",)

_ASSOCIATIONS = 1_000
_WATCHED = 10.0
_CONTEXTS = [PresentationContext(uid) for uid in (VERIFICATION, CT_IMAGE_STORAGE, MR_IMAGE_STORAGE, SECONDARY_CAPTURE)]


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trial."""
    words = f"{_ASSOCIATIONS:,} associations of {len(_CONTEXTS)} contexts, watched for {_WATCHED:g} s"
    rows = [
        Row(
            name=f"P10 {name}",
            what=what,
            bar=at_most(bar),
            ours=Figure("ours", name),
            unit=unit,
            setting=words,
        )
        for name, what, bar, unit in (
            ("cpu", "idle associations, CPU of a core", 2, "%"),
            ("memory", "idle associations, RSS each", 64, "KiB"),
        )
    ]
    yield [Trial({"ours": partial(_measure, setting)}, rows, warm_up=False)]


def _measure(setting: Setting) -> Readings:
    try:
        return anyio.run(_idle, setting)
    except AsyncDicomError as error:
        raise Failed(f"an association was not established, or did not last: {error}") from error


async def _idle(setting: Setting) -> Readings:
    with TemporaryDirectory(dir=setting.disk) as folder, receiver("ours", Path(folder), "full") as receiving:
        # One that comes and goes: what is loaded for the first of them is no part of the price of each.
        async with await _associate(receiving.port) as first:
            await first.release()
        without = resident(receiving.pid)
        async with AsyncExitStack() as held:
            wires = [await held.enter_async_context(await _associate(receiving.port)) for _ in range(_ASSOCIATIONS)]
            started, before = time.monotonic(), cpu_seconds(receiving.pid)
            with setting.profiled(receiving.pid, "idle"):
                await anyio.sleep(_WATCHED)
            busy = (cpu_seconds(receiving.pid) - before) / (time.monotonic() - started)
            grown = resident(receiving.pid) - without
            # All of them were there all the time.
            for wire in wires:
                await wire.echo()
    return {"cpu": 100 * busy, "memory": grown / 1024 / _ASSOCIATIONS}


async def _associate(port: int) -> Wire:
    wire = await Wire.connect("127.0.0.1", port)
    try:
        await wire.associate(_CONTEXTS)
    except BaseException:
        await wire.close()
        raise
    return wire
