"""``asyncdicom send``: files and folders, as they are."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asyncdicom.association.instance import Instance
from asyncdicom.cli.ending import FAILED, OK, ReaderGone, refuse
from asyncdicom.cli.options import Asking, Form
from asyncdicom.cli.output import Output
from asyncdicom.cli.progress import Meter
from asyncdicom.cli.rendering import (
    OUTCOME_HEADER,
    Column,
    Kind,
    Rows,
    View,
    as_json,
    clean,
    explanation,
    kind_of,
    outcome_fields,
    outcome_record,
    reason_style,
    tally,
)
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose
from asyncdicom.errors import DatasetError
from asyncdicom.outcome import Outcome

# A DICOMDIR lies among the instances that it lists; it is an index, and no instance (PS3.10 section 8.6).
_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_AT_ONCE = 64


def send(target: str, paths: Sequence[Path], asking: Asking, form: Form) -> int:
    """Run the command.

    :return: the exit status
    """
    if not paths:
        refuse("send: name at least one PATH, a DICOM file or a folder")
    kind = kind_of(form)
    return run(_Send(choose(asking, [target]), paths, kind).run)


def files_in(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that paths name, folders recursively and sorted. Blocks."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(names))


class _Send:
    """One run of the command."""

    def __init__(self, asked: Asked, paths: Sequence[Path], kind: Kind) -> None:
        self._asked = asked
        self._paths = paths
        self._kind: Kind = kind
        self._instances: list[Instance] = []
        self._skipped = 0
        self._outcomes: list[Outcome] = []
        self._seconds = 0.0

    async def run(self) -> int:
        """Read, send, and say what became of it."""
        async with Output() as output:
            rows = Rows(output, self._kind, _view())
            await rows.begin()
            try:
                await self._read()
                await self._send(rows)
            except ReaderGone:
                raise
            except BaseException:
                self._conclude(output, rows, interrupted=True)
                raise
            return self._conclude(output, rows, interrupted=False)

    async def _read(self) -> None:
        """Look into the files, on a thread: a folder may lie on a slow disk, and Ctrl-C must not wait for it."""
        loop = asyncio.get_running_loop()
        executor = ThreadPoolExecutor(1, thread_name_prefix="read")
        files = files_in(self._paths)
        try:
            async with Meter("files read", kind=self._kind) as meter:
                while True:
                    read, wrong = await loop.run_in_executor(executor, _look_into, files)
                    for message in wrong:
                        meter.say(message)
                    self._skipped += len(wrong)
                    self._instances += [instance for instance in read if instance.sop_class_uid != _MEDIA_STORAGE_DIRECTORY]
                    meter.advance(len(read) + len(wrong))
                    if not read and not wrong:
                        break
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    async def _send(self, rows: Rows[Outcome]) -> None:
        asked, started = self._asked, time.monotonic()
        try:
            async with (
                Meter("instances sent", len(self._instances) * len(asked.targets), kind=self._kind) as meter,
                asked.fleet,
            ):
                async for outcome in asked.fleet.send(self._instances, asked.targets):
                    self._outcomes.append(outcome)
                    meter.advance()
                    # People want to see what did not arrive; programs want to see everything.
                    if self._kind in ("json", "csv") or not outcome.ok:
                        await rows.add(outcome)
        finally:
            self._seconds = time.monotonic() - started

    def _conclude(self, output: Output, rows: Rows[Outcome], *, interrupted: bool) -> int:
        rows.end()
        expected = len(self._instances) * len(self._asked.targets)
        reasons = Counter(str(outcome.reason) for outcome in self._outcomes)
        reasons["cancelled"] += expected - len(self._outcomes)
        sent = reasons["ok"]
        nothing = not self._instances and not interrupted
        fine = sent == expected and not self._skipped and not interrupted and not nothing
        if nothing:
            output.say("there is nothing to send: no DICOM file was found")
        if self._kind == "json":
            summary = {
                "operation": "store",
                "ok": fine,
                "files": len(self._instances) + self._skipped,
                "skipped": self._skipped,
                "sent": sent,
                "failed": expected - sent,
                "bytes": sum(self._sizes().get(outcome.instance, 0) for outcome in self._outcomes if outcome.ok),
                "seconds": round(self._seconds, 3),
                "interrupted": interrupted,
                "reasons": dict(+reasons),
                "modalities": {target.name: self._of(target.name) for target in self._asked.targets},
            }
            output.put(as_json({"_summary": summary}))
        elif self._kind != "csv" and not nothing:
            output.say(self._in_words(sent, expected, +reasons))
        return OK if fine else FAILED

    def _sizes(self) -> dict[str | None, int]:
        return {instance.sop_instance_uid: instance.size for instance in self._instances}

    def _of(self, name: str) -> dict[str, object]:
        reasons = Counter(str(outcome.reason) for outcome in self._outcomes if outcome.modality == name)
        reasons["cancelled"] += len(self._instances) - reasons.total()
        return {"sent": reasons["ok"], "failed": len(self._instances) - reasons["ok"], "reasons": dict(+reasons)}

    def _in_words(self, sent: int, expected: int, reasons: Counter[str]) -> str:
        sizes = self._sizes()
        megabytes = sum(sizes.get(outcome.instance, 0) for outcome in self._outcomes if outcome.ok) / 1e6
        speed = f", {megabytes:,.1f} MB in {self._seconds:.1f} s" if sent else ""
        words = f"{sent:,} of {expected:,} instances sent{speed}"
        if sent < expected:
            words += f"; {tally(reason for reason in reasons.elements() if reason != 'ok')}"
        if self._skipped:
            words += f"; {self._skipped} files skipped"
        return words


def _look_into(files: Iterator[Path]) -> tuple[list[Instance], list[str]]:
    """Read the next files: what can be sent, and what is wrong with the others."""
    read: list[Instance] = []
    wrong: list[str] = []
    for path in files:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                # Opening a pipe or a device could wait for ever.
                raise DatasetError(f"{path}: cannot be read: not a regular file")
            read.append(Instance.read(path))
        except OSError as error:
            wrong.append(f"{clean(path)}: cannot be read: {error.strerror or clean(error)}: skipped")
        except DatasetError as error:
            wrong.append(f"{clean(error)}: skipped")
        if len(read) + len(wrong) >= _AT_ONCE:
            break
    return read, wrong


def _line(outcome: Outcome) -> str:
    path = None if outcome.path is None else str(outcome.path)
    return as_json({**outcome_fields(outcome), "instance": outcome.instance, "path": path})


def _view() -> View[Outcome]:
    return View(
        json=_line,
        header=(*OUTCOME_HEADER, "instance", "path"),
        record=lambda outcome: [*outcome_record(outcome), outcome.instance, outcome.path],
        columns=(
            Column("file", lambda outcome: str(outcome.path)),
            Column("to", lambda outcome: outcome.modality, fit="whole"),
            Column("result", lambda outcome: str(outcome.reason), reason_style, fit="whole"),
            Column("what happened", explanation),
        ),
    )
