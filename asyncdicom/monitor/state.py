"""What is known of each modality now: up or down since when, the last outcomes, and what was received.

A state is immutable and replaced by every event. Whoever renders one, in whatever thread, holds something that does not
change under its hands, and taking it costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from asyncdicom.modality import Modality
from asyncdicom.observe import Observer
from asyncdicom.outcome import Operation, Outcome, Reason, Status

KEPT_OUTCOMES = 60
# Failures are kept longer than successes push them out: why it was down last week is asked on Monday.
KEPT_FAILURES = 30
KEPT_CHANGES = 30
# A modality is up or down by what is asked in order to know. A store that fails says something of an instance.
TELLING: frozenset[Operation] = frozenset(("echo", "find"))

Condition = Literal["up", "down", "unknown"]
_WORST_FIRST = {"down": 0, "unknown": 1, "up": 2}


@dataclass(frozen=True, slots=True)
class Sample:
    """One outcome among the last ones.

    :ivar at: when it ended, in seconds since the epoch
    :ivar duration: seconds
    """

    at: float
    operation: Operation
    reason: Reason
    duration: float


@dataclass(frozen=True, slots=True)
class Failure:
    """One outcome that was none.

    :ivar at: when it ended, in seconds since the epoch
    :ivar detail: what happened, in one line for a person; never patient data
    """

    at: float
    operation: Operation
    reason: Reason
    status: Status | None
    detail: str


@dataclass(frozen=True, slots=True)
class Change:
    """A modality went up or down.

    :ivar at: when, in seconds since the epoch
    """

    at: float
    condition: Condition


@dataclass(slots=True)
class Past:
    """What an earlier life knew of a modality, oldest first."""

    samples: list[Sample] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ModalityState:
    """What is known of one modality.

    :ivar latest: the last outcome of each telling operation
    :ivar last: the last outcome of all
    :ivar since: since when it is up or down, in seconds since the epoch; None while that is unknown
    :ivar last_success: when a telling operation last succeeded
    :ivar failures: telling outcomes without success, in a row
    :ivar samples: the last outcomes, oldest first
    :ivar failed: the last failures, oldest first, however long ago
    :ivar changes: when it last went up or down, oldest first
    :ivar last_received: when an instance last came from it
    :ivar breaker_open: whether it is left alone for a while
    :ivar expected_by: when an instance is expected of it at the latest; None when nothing is, or not enough is known
    :ivar quiet_since: since when it has sent less than expected; None while it has not
    """

    modality: Modality
    latest: Mapping[Operation, Outcome] = field(default_factory=lambda: MappingProxyType({}))
    last: Outcome | None = None
    since: float | None = None
    last_success: float | None = None
    failures: int = 0
    samples: tuple[Sample, ...] = ()
    failed: tuple[Failure, ...] = ()
    changes: tuple[Change, ...] = ()
    last_received: float | None = None
    breaker_open: bool = False
    expected_by: float | None = None
    quiet_since: float | None = None

    @property
    def condition(self) -> Condition:
        """Up when every operation that is asked of it succeeded the last time: a C-ECHO alone does not prove queries."""
        if not self.latest:
            return "unknown"
        return "up" if all(outcome.ok for outcome in self.latest.values()) else "down"

    @property
    def telling(self) -> Outcome | None:
        """The outcome that explains the condition: a failure where there is one."""
        return next((outcome for outcome in self.latest.values() if not outcome.ok), self.last)

    @property
    def latency(self) -> float | None:
        """Seconds that the last success took."""
        return next((sample.duration for sample in reversed(self.samples) if sample.reason is Reason.OK), None)

    def stretches(self, now: float) -> list[tuple[Change, float]]:
        """The changes, each with the seconds that it lasted; the last one until now.

        :param now: seconds since the epoch
        """
        ends = [*(change.at for change in self.changes[1:]), now]
        return [(change, max(0.0, end - change.at)) for change, end in zip(self.changes, ends, strict=False)]

    def after(self, outcome: Outcome, now: float) -> ModalityState:
        """The state after one more outcome.

        :param now: seconds since the epoch
        """
        if outcome.reason is Reason.BREAKER_OPEN and self.last is not None:
            # It was not asked: what is known of it stays, and the reason why it is left alone stays readable.
            sample = Sample(now, outcome.operation, outcome.reason, 0.0)
            return replace(self, samples=(*self.samples, sample)[-KEPT_OUTCOMES:])
        before = self.condition
        latest = {**self.latest, outcome.operation: outcome}
        samples = (*self.samples, Sample(now, outcome.operation, outcome.reason, outcome.duration))[-KEPT_OUTCOMES:]
        failed = self.failed
        if not outcome.ok:
            failure = Failure(now, outcome.operation, outcome.reason, outcome.status, outcome.detail)
            failed = (*failed, failure)[-KEPT_FAILURES:]
        state = replace(
            self,
            latest=MappingProxyType(latest),
            last=outcome,
            last_success=now if outcome.ok else self.last_success,
            failures=0 if outcome.ok else self.failures + 1,
            samples=samples,
            failed=failed,
        )
        if state.condition == before:
            return state
        return replace(state, since=now, changes=(*self.changes, Change(now, state.condition))[-KEPT_CHANGES:])

    def remembering(self, past: Past) -> ModalityState:
        """The state with what an earlier life knew: it is as up or down as it was then, until it is asked again."""
        details = {failure.at: failure for failure in past.failed}
        latest: dict[Operation, Outcome] = {}
        failures = 0
        for sample in past.samples:
            if sample.reason is Reason.BREAKER_OPEN:
                continue
            failures = 0 if sample.reason is Reason.OK else failures + 1
            known = details.get(sample.at)
            latest[sample.operation] = Outcome(
                self.modality.name,
                sample.operation,
                sample.reason,
                duration=sample.duration,
                status=None if known is None else known.status,
                detail="" if known is None else known.detail,
                ae_title=self.modality.ae_title,
                host=self.modality.host,
                port=self.modality.port,
            )
        succeeded = [sample.at for sample in past.samples if sample.reason is Reason.OK]
        return replace(
            self,
            latest=MappingProxyType(latest),
            last=latest.get(past.samples[-1].operation) if past.samples else None,
            since=past.changes[-1].at if past.changes else None,
            last_success=max(succeeded, default=None),
            failures=failures,
            samples=tuple(past.samples[-KEPT_OUTCOMES:]),
            failed=tuple(past.failed[-KEPT_FAILURES:]),
            changes=tuple(past.changes[-KEPT_CHANGES:]),
        )


def worst_first(states: Iterable[ModalityState]) -> list[ModalityState]:
    """Put down before unknown before up, and what changed last before what is down for long."""
    return sorted(
        states,
        key=lambda state: (
            _WORST_FIRST[state.condition],
            -(state.since or 0) if state.condition == "down" else 0,
            state.modality.name,
        ),
    )


class States(Observer):
    """The states of the inventory's modalities, kept by watching what happens.

    :param modalities: the inventory
    :param clock: seconds since the epoch
    :param on_change: called with the state after a modality went up or down
    :ivar on_outcome: called with the state after an outcome, and whether it went up or down by that
    """

    def __init__(
        self,
        modalities: Iterable[Modality] = (),
        *,
        clock: Callable[[], float] = time.time,
        on_change: Callable[[ModalityState], None] | None = None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self.on_outcome: Callable[[ModalityState, bool], None] | None = None
        self._states: dict[str, ModalityState] = {}
        self._by_ae_title: dict[str, list[str]] = {}
        self.configure(modalities)

    def configure(self, modalities: Iterable[Modality]) -> None:
        """Take another inventory. A modality keeps its state as long as its name, address and AE title stay."""
        states: dict[str, ModalityState] = {}
        by_ae_title: dict[str, list[str]] = {}
        for modality in modalities:
            known = self._states.get(modality.name)
            same = known is not None and str(known.modality) == str(modality)
            states[modality.name] = replace(known, modality=modality) if known and same else ModalityState(modality)
            by_ae_title.setdefault(modality.ae_title, []).append(modality.name)
        self._states, self._by_ae_title = states, by_ae_title

    def received_before(self, times: Mapping[str, float]) -> None:
        """Take over what an index knows of earlier days.

        :param times: calling AE title to when its last instance came, in seconds since the epoch
        """
        for title, at in times.items():
            for name in self._by_ae_title.get(title.strip(), ()):
                self._states[name] = replace(self._states[name], last_received=at)

    def remember(self, past: Mapping[str, Past]) -> None:
        """Take over what an earlier life knew of modalities that were not asked yet."""
        for name, known in past.items():
            state = self._states.get(name)
            if state is not None and not state.samples:
                self._states[name] = state.remembering(known)

    def get(self, name: str) -> ModalityState | None:
        """The state of a modality, None when the inventory has no such name."""
        return self._states.get(name)

    def all(self) -> list[ModalityState]:
        """Every state, in the order of the inventory."""
        return list(self._states.values())

    def operation_ended(self, outcome: Outcome) -> None:
        """Take an outcome into account; a cancelled one says nothing of the modality."""
        state = self._states.get(outcome.modality)
        if state is None or outcome.operation not in TELLING or outcome.reason is Reason.CANCELLED:
            return
        after = state.after(outcome, self._clock())
        self._states[outcome.modality] = after
        changed = after.condition != state.condition
        if self.on_outcome is not None:
            self.on_outcome(after, changed)
        if self._on_change is not None and changed:
            self._on_change(after)

    def breaker_changed(self, modality: str, is_open: bool) -> None:
        """Note that a modality is left alone, or asked again."""
        if modality in self._states:
            self._states[modality] = replace(self._states[modality], breaker_open=is_open)

    def silence_judged(self, name: str, *, expected_by: float | None, quiet_since: float | None) -> None:
        """Note until when an instance is expected of a modality, and since when it is quiet."""
        state = self._states.get(name)
        if state is not None and (state.expected_by, state.quiet_since) != (expected_by, quiet_since):
            self._states[name] = replace(state, expected_by=expected_by, quiet_since=quiet_since)

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """Note that an instance came."""
        if status == 0x0000 or 0xB000 <= status <= 0xBFFF:
            for name in self._by_ae_title.get(calling_ae_title.strip(), ()):
                self._states[name] = replace(self._states[name], last_received=self._clock())


class StorageState(Observer):
    """What the storage SCP did since it was started.

    :ivar associations: open now
    :ivar instances: answered with success or a warning
    :ivar failed: answered with a failure
    :ivar received_bytes: bytes of their datasets
    :ivar last_received: when the last instance came, in seconds since the epoch
    :ivar rejected: associations and connections that were turned away
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.associations = 0
        self.instances = 0
        self.failed = 0
        self.received_bytes = 0
        self.rejected = 0
        self.last_received: float | None = None

    def scp_association_opened(self, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self.associations += 1

    def scp_association_closed(self, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self.associations -= 1

    def scp_association_rejected(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self.rejected += 1

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """Count the instance."""
        if status == 0x0000 or 0xB000 <= status <= 0xBFFF:
            self.instances += 1
            self.received_bytes += size
            self.last_received = self._clock()
        else:
            self.failed += 1


class Broadcast(Observer):
    """Several observers as one.

    A method is passed on only to the observers that have one of their own, so that the path of an arriving instance pays
    for nothing that nobody listens to.

    :param observers: who is told, in this order
    """

    def __init__(self, *observers: Observer) -> None:
        for name in (name for name in vars(Observer) if not name.startswith("_")):
            listeners = [getattr(one, name) for one in observers if getattr(type(one), name) is not getattr(Observer, name)]
            if listeners:
                setattr(self, name, listeners[0] if len(listeners) == 1 else _all_of(listeners))


def _all_of(listeners: list[Callable[..., None]]) -> Callable[..., None]:
    def tell(*args: Any) -> None:
        for listener in listeners:
            listener(*args)

    return tell
