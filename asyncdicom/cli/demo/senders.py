"""Scanners that send: synthetic studies to our storage SCP, and a ledger of what was acknowledged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from asyncdicom.association.instance import Instance
from asyncdicom.cli.demo.threads import in_thread
from asyncdicom.errors import DatasetError
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.modality import Modality
from asyncdicom.outcome import Outcome
from asyncdicom.testing import HeldInstance, synthetic_study

_INSTANCES = 6
_SIZE = 128
# Seconds from one study of a sender to its next.
_PAUSE = 1.5
# After so many studies a sender begins again: the disk stays bounded, and the page shows duplicates.
_DIFFERENT = 60


@dataclass
class Ledger:
    """What was sent.

    :ivar acknowledged: the SHA-256 of each acknowledged dataset by SOP Instance UID
    :ivar refused: outcomes of what was not acknowledged
    """

    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: list[Outcome] = field(default_factory=list)
    sent: int = 0

    def note(self, outcome: Outcome, digest: str) -> None:
        """An instance has its outcome."""
        self.sent += 1
        if outcome.ok and outcome.instance is not None:
            self.acknowledged[outcome.instance] = digest
        else:
            self.refused.append(outcome)


async def send(
    fleet: Fleet, to: Modality, ledger: Ledger, stop: anyio.Event, executor: Executor, most: int | None = None
) -> None:
    """Send study after study until told to stop; a study that was begun is finished.

    :param to: our storage SCP, and how this sender introduces itself to it
    :param most: studies, after which it falls silent; None for no end
    """
    number = 0
    while not stop.is_set() and number != most:
        # Making pixels takes a while, which the other parts of this process would have to wait for.
        study = await in_thread(executor, _make_study, to.name, number % _DIFFERENT)
        digests = {instance.sop_instance_uid: digest for instance, digest in study}
        async for outcome in fleet.send([instance for instance, _ in study], [to]):
            ledger.note(outcome, digests[outcome.instance or ""])
        number += 1
        with anyio.move_on_after(_PAUSE):
            await stop.wait()


def _make_study(sender: str, number: int) -> list[tuple[Instance, str]]:
    study = []
    for _, file in synthetic_study(_INSTANCES, _SIZE, _SIZE, seed=f"{sender} {number}"):
        held = HeldInstance.read(file)
        data = bytes(held.dataset)
        instance = Instance(held.sop_class_uid, held.sop_instance_uid, held.transfer_syntax_uid, size=len(data), data=data)
        study.append((instance, hashlib.sha256(data).hexdigest()))
    return study


def verify(ledger: Ledger, archive: Path) -> list[str]:
    """Hash what lies in an archive against what was acknowledged. Blocks.

    :return: what is wrong, one line for each instance
    """
    files = {path.stem: path for path in archive.rglob("*.dcm")}
    wrong = []
    for uid, digest in ledger.acknowledged.items():
        path = files.pop(uid, None)
        if path is None:
            wrong.append(f"{uid}: acknowledged, and not in the archive")
        elif _digest(path) != digest:
            wrong.append(f"{uid}: its bytes in the archive are not those that were sent")
    refused = {outcome.instance for outcome in ledger.refused}
    return wrong + [f"{uid}: in the archive, and never acknowledged" for uid in _without(files, refused)]


def _without(files: Iterable[str], refused: set[str | None]) -> list[str]:
    return sorted(uid for uid in files if uid not in refused)


def _digest(path: Path) -> str:
    """The SHA-256 of the dataset in a DICOM file."""
    try:
        offset = Instance.read(path).offset
    except DatasetError:
        return ""
    return hashlib.sha256(path.read_bytes()[offset:]).hexdigest()
