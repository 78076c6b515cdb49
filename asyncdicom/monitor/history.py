"""What became of each modality, kept in the index: a restart forgets nothing."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import anyio

from asyncdicom.background import BackgroundTasks, to_its_end
from asyncdicom.elements import storable
from asyncdicom.errors import ArchiveError
from asyncdicom.modality import Modality
from asyncdicom.monitor.state import KEPT_CHANGES, KEPT_FAILURES, KEPT_OUTCOMES, Change, Failure, ModalityState, Past, Sample
from asyncdicom.outcome import Reason, Status

logger = logging.getLogger(__name__)

# A sweep of thousands is written in a few transactions, and a kill forgets no more than so many seconds.
_EVERY = 2.0
# Rows that wait while the index does not answer; beyond it the oldest are forgotten, which is said.
_MOST_WAITING = 200_000

_Row = tuple[Any, ...]
_KEPT = {"outcomes": KEPT_OUTCOMES, "failures": KEPT_FAILURES, "conditions": KEPT_CHANGES}
_COLUMNS = {
    "outcomes": "modality, address, slot, at, operation, reason, duration",
    "failures": "modality, address, slot, at, operation, reason, status, detail",
    "conditions": "modality, address, slot, at, condition",
}


class Table(Protocol):
    """What a history asks of an index."""

    async def write(self, job: Any) -> Any:
        """Run a job in a transaction, and return its result once that is committed."""

    async def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Read rows."""


class History:
    """Writes down what happens to modalities, and reads it again. An async context manager.

    :param index: where to; open
    """

    def __init__(self, index: Table) -> None:
        self._index = index
        self._tasks = BackgroundTasks()
        self._slots: dict[tuple[str, str], int] = {}
        self._waiting: dict[str, list[_Row]] = defaultdict(list)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start(self._keep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)
        await to_its_end(self.flush())

    def note(self, state: ModalityState, changed: bool) -> None:
        """Write down the last outcome of a modality, in a moment.

        :param state: after the outcome
        :param changed: whether it went up or down by that
        """
        sample = state.samples[-1]
        self._add("outcomes", state.modality, (sample.at, sample.operation, sample.reason.value, sample.duration))
        if sample.reason is not Reason.OK and state.failed and state.failed[-1].at == sample.at:
            failure = state.failed[-1]
            status = None if failure.status is None else int(failure.status)
            detail = storable(failure.detail)
            self._add("failures", state.modality, (failure.at, failure.operation, failure.reason.value, status, detail))
        if changed:
            self._add("conditions", state.modality, (state.changes[-1].at, state.changes[-1].condition))

    def _add(self, table: str, modality: Modality, values: _Row) -> None:
        key = table, modality.name
        slot = self._slots[key] = (self._slots.get(key, -1) + 1) % _KEPT[table]
        waiting = self._waiting[table]
        # One text that no index takes would keep all that waits with it from being written, for ever.
        waiting.append((storable(modality.name), storable(str(modality)), slot, *values))
        if len(waiting) > _MOST_WAITING:
            del waiting[: _MOST_WAITING // 2]
            logger.error("the index takes no history: the older half of what waits is forgotten", extra={"table": table})

    async def _keep(self) -> None:
        while True:
            await anyio.sleep(_EVERY)
            await to_its_end(self.flush())

    async def flush(self) -> None:
        """Write what waits. What the index does not take waits on."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        if not any(waiting.values()):
            return

        def job(transaction: Any) -> None:
            for table, rows in waiting.items():
                transaction.executemany(
                    f"INSERT OR REPLACE INTO {table} ({_COLUMNS[table]}) VALUES ({', '.join('?' * len(rows[0]))})",  # noqa: S608
                    rows,
                )

        try:
            await self._index.write(job)
        except ArchiveError as error:
            logger.warning("the history waits for the index: %s", error)
            for table, rows in waiting.items():
                self._waiting[table] = rows + self._waiting[table]

    async def past(self, modalities: Iterable[Modality]) -> dict[str, Past]:
        """What is known of modalities that have kept their name and address.

        :raises ArchiveError: when the index cannot be read
        """
        known = {storable(modality.name): (modality.name, storable(str(modality))) for modality in modalities}
        found: dict[str, Past] = {}
        for table in _KEPT:
            rows = await self._index.ask(f"SELECT {_COLUMNS[table]} FROM {table} ORDER BY modality, at, slot")  # noqa: S608
            for stored, address, slot, *values in rows:
                name, expected = known.get(stored, ("", None))
                if address != expected:
                    continue
                self._slots[table, name] = slot
                past = found.setdefault(name, Past())
                if table == "outcomes":
                    at, operation, reason, duration = values
                    past.samples.append(Sample(at, operation, Reason(reason), duration))
                elif table == "failures":
                    at, operation, reason, status, detail = values
                    past.failed.append(
                        Failure(at, operation, Reason(reason), None if status is None else Status(status), detail)
                    )
                else:
                    past.changes.append(Change(*values))
        return found
