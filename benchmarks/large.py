"""P11: one instance of gigabytes received, from a sender that never has it in memory.

As a program, it is the sender, and tells the seconds from the first byte to the status:
``python -m benchmarks.large PORT BYTES``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.comparison import Figure, Readings, Row, Trial, at_least, at_most
from benchmarks.processes import (
    Failed,
    forget_peak,
    is_in_memory,
    memory_folder,
    module,
    peak_resident,
    resident,
    tell,
    told_by,
)
from benchmarks.receivers import receiver
from benchmarks.setting import Setting

BARS = ("P11",)

# Of what is sent at once.
_BLOCK = 1 << 18
_TIMEOUT = 300.0


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trial, in memory where there is room for the instance."""
    size = setting.large_size
    with memory_folder(2 * size) as place:
        where = "in memory" if is_in_memory(place) else "on the disk"
        words = f"{size / 1e9:g} GB, nothing synced, {where}; a sender that makes the bytes as it goes"
        sides = {name: partial(_receive, setting, place, name) for name in ("ours", "preserving", "wide")}

        def against(name: str, side: str, peer: str, *, judged: bool) -> Row:
            return Row(
                name=name,
                what="one large instance, MB/s",
                bar=at_least(1.0) if judged else None,
                ours=Figure("ours", "rate"),
                theirs=Figure(side, "rate"),
                peer=peer,
                setting=words,
            )

        rows = [
            Row(
                name="P11 memory",
                what="one large instance, peak RSS over idle",
                bar=at_most(32),
                ours=Figure("ours", "grown"),
                unit="MB",
                setting=words,
            ),
            against("P11 rate", "preserving", "storescp +B", judged=True),
            against("P11 rate wide", "wide", "storescp +B --max-pdu 131072", judged=False),
        ]
        yield [Trial(sides, rows, warm_up=False)]


def _receive(setting: Setting, place: Path, name: str) -> Readings:
    size = setting.large_size
    with TemporaryDirectory(dir=place) as folder, receiver(name, Path(folder)) as receiving:
        idle = resident(receiving.pid)
        forget_peak(receiving.pid)
        command = module("benchmarks.large", receiving.port, size)
        if name == "ours":
            with setting.profiled(receiving.pid, "large"):
                spent = told_by(command)["seconds"]
        else:
            spent = told_by(command)["seconds"]
        grown = peak_resident(receiving.pid) - idle
        receiving.check(1)
        kept = max(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        if kept < size:
            raise Failed(f"{kept} of {size} bytes are kept")
    return {"rate": size / spent / 1e6, "grown": grown / 1e6}


# The program


async def _send(port: int, size: int) -> float:
    from pydicom.dataset import Dataset

    from asyncdicom.association.query import encode_dataset
    from asyncdicom.testing import Wire
    from asyncdicom.testing.instances import SECONDARY_CAPTURE, synthetic_uid
    from asyncdicom.upper_layer import message, pdu
    from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, PresentationContext

    dataset = Dataset()
    dataset.SOPClassUID = SECONDARY_CAPTURE
    dataset.SOPInstanceUID = synthetic_uid("large", time.time_ns())
    dataset.StudyInstanceUID = synthetic_uid("large study")
    dataset.SeriesInstanceUID = synthetic_uid("large series")
    # Pixel Data, (7FE0,0010), OW with a length of 32 bits (PS3.5 section 7.1.2).
    head = encode_dataset(dataset, EXPLICIT_VR_LITTLE_ENDIAN) + b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    async with await Wire.connect("127.0.0.1", port, timeout=_TIMEOUT) as wire:
        await wire.associate([PresentationContext(SECONDARY_CAPTURE, (EXPLICIT_VR_LITTLE_ENDIAN,))])
        context = wire.context_of(SECONDARY_CAPTURE)
        # As much as the peer takes, the same bytes again and again.
        length = pdu.fragment_length(wire.max_length)
        fragment = bytes(range(256)) * (length // 256 + 1)

        def data(count: int, *, last: bool) -> bytes:
            return pdu.data_header(context, count, command=False, last=last) + fragment[:count]

        whole = data(length, last=False)
        at_once = max(1, _BLOCK // len(whole))
        block = whole * at_once
        request = message.request(
            message.CommandField.C_STORE_RQ,
            wire.next_message_id(),
            SECONDARY_CAPTURE,
            dataset=True,
            AffectedSOPInstanceUID=str(dataset.SOPInstanceUID),
        )
        # The last fragment is always one of its own.
        full, rest = divmod(size - 1, length)
        started = time.monotonic()
        await wire.send(pdu.encode_message(context, message.encode_command(request), max_length=wire.max_length))
        await wire.send(pdu.data_header(context, len(head), command=False, last=False) + head)
        for _ in range(full // at_once):
            await wire.send(block)
        await wire.send(whole * (full % at_once) + data(rest + 1, last=True))
        status = (await wire.receive_message()).command.status
        spent = time.monotonic() - started
        await wire.release()
    if status != 0:
        raise RuntimeError(f"status 0x{status:04X}")
    return spent


if __name__ == "__main__":
    import asyncio

    tell(seconds=asyncio.run(_send(int(sys.argv[1]), int(sys.argv[2]))))
