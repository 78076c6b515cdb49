"""``asyncdicom move`` and ``asyncdicom get``: what archives hold, sent elsewhere or fetched."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio

from asyncdicom.archive import Archive
from asyncdicom.archive.contract import Durability
from asyncdicom.association.received import Received
from asyncdicom.cli.ending import FAILED, OK, Failure, ReaderGone, say
from asyncdicom.cli.options import Asking, Form, Retrieval
from asyncdicom.cli.output import Output
from asyncdicom.cli.plan import Plan, Task, plan
from asyncdicom.cli.progress import Meter
from asyncdicom.cli.rendering import (
    OUTCOME_HEADER,
    Column,
    Kind,
    Rows,
    View,
    as_json,
    explanation,
    kind_of,
    milliseconds,
    outcome_fields,
    outcome_record,
    reason_style,
    tally,
)
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose
from asyncdicom.errors import ArchiveError, ConfigurationError
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.modality import check_ae_title
from asyncdicom.outcome import Operation, Outcome, Reason, SubOperations

Done = tuple[Task, Outcome]
# Starts one task; gives its one outcome.
Start = Callable[[Fleet, Task], AsyncIterator[Outcome]]
WhenDone = Callable[[Task, Outcome], Awaitable[None]]


def move(source: str, to: str, retrieval: Retrieval, asking: Asking, form: Form) -> int:
    """Run ``asyncdicom move``.

    :return: the exit status
    """
    to = check_ae_title(to, "--to")
    kind = kind_of(form)
    asked = choose(asking, [source], deadline_by_caller=True)
    planned = plan("move", retrieval, asked.targets)

    def start(fleet: Fleet, task: Task) -> AsyncIterator[Outcome]:
        return fleet.move(task.query, to=to, targets=[task.target])

    return run(_Retrieve("move", asked, planned, kind).with_start(start))


def get(source: str, into: Path, durability: Durability, retrieval: Retrieval, asking: Asking, form: Form) -> int:
    """Run ``asyncdicom get``.

    :return: the exit status
    """
    kind = kind_of(form)
    asked = choose(asking, [source], deadline_by_caller=True)
    planned = plan("get", retrieval, asked.targets)
    return run(_Retrieve("get", asked, planned, kind).with_archive(into, durability))


class _Retrieve:
    """One run of either command."""

    def __init__(self, operation: Operation, asked: Asked, planned: Plan, kind: Kind) -> None:
        self._operation: Operation = operation
        self._asked = asked
        self._plan = planned
        self._kind: Kind = kind
        self._done: list[Done] = []
        self._instances = 0
        self._bytes = 0

    def with_start(self, start: Start) -> Callable[[], Awaitable[int]]:
        """What runs it with its instances going elsewhere."""

        async def work() -> int:
            async with Output() as output:
                return await self._run(output, None, start)

        return work

    def with_archive(self, into: Path, durability: Durability) -> Callable[[], Awaitable[int]]:
        """What runs it with its instances going into a folder."""

        async def work() -> int:
            async with Output() as output, AsyncExitStack() as stack:
                try:
                    archive = await stack.enter_async_context(Archive(into, durability=durability))
                except (ArchiveError, ConfigurationError, OSError) as error:
                    why = error.remedy if isinstance(error, ConfigurationError) else getattr(error, "strerror", None) or error
                    raise Failure(f"--into {into}: {why}") from error
                return await self._run(output, archive, None)

        return work

    async def _run(self, output: Output, archive: Archive | None, start: Start | None) -> int:
        rows = Rows(output, self._kind, _view())
        for line in self._plan.wrong:
            say(f"--from: {line}")
        await rows.begin()
        try:
            await self._perform(output, rows, archive, start)
        except ReaderGone:
            raise
        except BaseException:
            self._conclude(output, rows, interrupted=True)
            raise
        return self._conclude(output, rows, interrupted=False)

    async def _perform(self, output: Output, rows: Rows[Done], archive: Archive | None, start: Start | None) -> None:
        asked, tasks = self._asked, self._plan.tasks
        total = len(tasks) if len(tasks) > 1 and archive is None else None
        async with Meter("instances" if archive is not None else "queries", total, kind=self._kind) as meter, asked.fleet:
            begin = start if start is not None else self._fetch(archive, output, meter)

            async def done(task: Task, outcome: Outcome) -> None:
                self._done.append((task, outcome))
                if archive is None:
                    meter.advance()
                await rows.add((task, outcome))

            queues: dict[str, deque[Task]] = {}
            for task in tasks:
                queues.setdefault(task.target.name, deque()).append(task)
            async with anyio.create_task_group() as group:
                for name, queue in queues.items():
                    for _ in range(min(len(queue), queue[0].target.limits.per_modality)):
                        group.start_soon(_work, asked, queue, begin, self._operation, done, name=f"{self._operation} {name}")

    def _fetch(self, archive: Archive | None, output: Output, meter: Meter) -> Start:
        assert archive is not None, "what is fetched goes somewhere"  # noqa: S101

        def start(fleet: Fleet, task: Task) -> AsyncIterator[Outcome]:
            async def keep(received: Received) -> int:
                stored = await archive.store(received)
                kept = stored.status.category in ("Success", "Warning")
                if kept:
                    self._instances += 1
                    self._bytes += received.size
                    meter.advance()
                if self._kind == "json":
                    line = {
                        "modality": task.target.name,
                        "instance": received.sop_instance_uid,
                        "ok": kept,
                        "status": int(stored.status),
                        "path": None if stored.path is None else str(stored.path),
                        "sop_class_uid": received.sop_class_uid,
                        "transfer_syntax_uid": received.transfer_syntax_uid,
                        "bytes": received.size,
                        "duplicate": stored.duplicate,
                    }
                    await output.line(as_json(line))
                return int(stored.status)

            return fleet.get(task.query, into=keep, targets=[task.target])

        return start

    def _conclude(self, output: Output, rows: Rows[Done], *, interrupted: bool) -> int:
        """Say what became of it all; return the exit status."""
        rows.end()
        outcomes = [outcome for _, outcome in self._done]
        failed = [outcome for outcome in outcomes if not outcome.ok]
        undone = len(self._plan.tasks) - len(outcomes)
        fine = not failed and not undone and not self._plan.wrong and not interrupted
        counts = _sum(outcome.sub_operations for outcome in outcomes)
        instances = self._instances if self._operation == "get" else counts.completed + counts.warning
        if self._kind == "json":
            names = dict.fromkeys(task.target.name for task in self._plan.tasks)
            summary = {
                "operation": self._operation,
                "ok": fine,
                "queries": len(self._plan.tasks),
                "succeeded": len(outcomes) - len(failed),
                "failed": len(failed) + undone,
                "instances": instances,
                "bytes": self._bytes if self._operation == "get" else None,
                "sub_operations": asdict(counts),
                "bad_lines": len(self._plan.wrong),
                "interrupted": interrupted,
                "reasons": _reasons(outcomes, undone),
                "modalities": {name: self._of(name) for name in names},
            }
            output.put(as_json({"_summary": summary}))
        elif self._kind != "csv":
            output.say(self._in_words(instances, failed, undone))
        return OK if fine else FAILED

    def _of(self, name: str) -> dict[str, Any]:
        asked = sum(task.target.name == name for task in self._plan.tasks)
        outcomes = [outcome for task, outcome in self._done if task.target.name == name]
        succeeded = sum(outcome.ok for outcome in outcomes)
        return {
            "queries": asked,
            "succeeded": succeeded,
            "failed": asked - succeeded,
            "reasons": _reasons(outcomes, asked - len(outcomes)),
        }

    def _in_words(self, instances: int, failed: list[Outcome], undone: int) -> str:
        verb = "fetched" if self._operation == "get" else "moved"
        size = f" ({self._bytes / 1e6:,.1f} MB)" if self._operation == "get" else ""
        words = f"{instances:,} instance{'' if instances == 1 else 's'} {verb}{size}"
        reasons = [str(outcome.reason) for outcome in failed] + ["cancelled"] * undone
        if reasons:
            words += f"; {len(reasons)} of {len(self._plan.tasks)} queries failed: {tally(reasons)}"
        if self._plan.wrong:
            words += f"; {len(self._plan.wrong)} lines could not be used"
        return words


async def _work(asked: Asked, queue: deque[Task], start: Start, operation: Operation, done: WhenDone) -> None:
    """Do the tasks of one archive in their order, and give every one its outcome as it completes.

    An outcome does not tell which query it answers, so each query is a run of its own. The deadline is that of them all.
    """
    until = asked.until()
    while queue:
        task = queue.popleft()
        outcomes: list[Outcome] = []
        if anyio.current_time() < until:
            with anyio.CancelScope(deadline=until):
                outcomes = [outcome async for outcome in start(asked.fleet, task)]
        await done(task, outcomes[0] if outcomes else _ended(task, operation, Reason.DEADLINE, "the deadline passed"))


def _ended(task: Task, operation: Operation, reason: Reason, detail: str) -> Outcome:
    target = task.target
    return Outcome(target.name, operation, reason, detail=detail, ae_title=target.ae_title, host=target.host, port=target.port)


def _sum(counts: Any) -> SubOperations:
    known = [count for count in counts if count is not None]
    return SubOperations(
        *(sum(getattr(count, name) for count in known) for name in ("remaining", "completed", "failed", "warning"))
    )


def _reasons(outcomes: list[Outcome], undone: int) -> dict[str, int]:
    reasons = Counter(str(outcome.reason) for outcome in outcomes)
    reasons["cancelled"] += undone
    return dict(+reasons)


def _counts(done: Done) -> SubOperations:
    return done[1].sub_operations or SubOperations()


def _line(done: Done) -> str:
    task, outcome = done
    fields = outcome_fields(outcome)
    fields["level"] = task.query.level
    fields["keys"] = dict(task.query.keys)
    fields["sub_operations"] = None if outcome.sub_operations is None else asdict(outcome.sub_operations)
    fields["received"] = outcome.received
    return as_json(fields)


def _view() -> View[Done]:
    return View(
        json=_line,
        header=(*OUTCOME_HEADER, "level", "keys", "completed", "failed", "warning", "remaining", "received"),
        record=lambda done: [
            *outcome_record(done[1]),
            done[0].query.level,
            done[0].what,
            _counts(done).completed,
            _counts(done).failed,
            _counts(done).warning,
            _counts(done).remaining,
            done[1].received,
        ],
        columns=(
            Column("archive", lambda done: done[0].target.name, fit="whole"),
            Column("what", lambda done: done[0].what),
            Column("result", lambda done: str(done[1].reason), lambda done: reason_style(done[1]), fit="whole"),
            Column("instances", lambda done: str(_counts(done).completed + _counts(done).warning), right=True),
            Column("failed", lambda done: str(_counts(done).failed or ""), right=True),
            Column("time", lambda done: milliseconds(done[1].duration), right=True),
            Column("what happened", lambda done: explanation(done[1])),
        ),
    )
