"""Who may go now: the global limit, the limit of each modality, its circuit breaker. Decided without awaiting."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality
from asyncdicom.observe import NULL_OBSERVER, Observer
from asyncdicom.outcome import Reason


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a modality is left alone.

    :ivar failures: consecutive failures that open it; 0 for never
    :ivar open_for: seconds that it stays open; then one operation is let through to try
    """

    failures: int = 5
    open_for: float = 60.0

    def __post_init__(self) -> None:
        if self.failures < 0:
            raise ConfigurationError("breaker.failures", self.failures, "0 for never, or a number of failures")
        if not self.open_for > 0:
            raise ConfigurationError("breaker.open_for", self.open_for, "a number of seconds above 0")


class Decision(Enum):
    """What :meth:`Gate.enter` answers."""

    GO = "go"
    WAIT_FOR_ANY = "wait for any"
    WAIT_FOR_MODALITY = "wait for the modality"
    BREAKER_OPEN = "breaker open"


# These say nothing about whether the modality works: we gave up, or it answered and did not like the question.
_NEUTRAL = {Reason.CANCELLED, Reason.DEADLINE, Reason.BREAKER_OPEN, Reason.FAILURE_STATUS, Reason.NO_CONTEXT}


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    open_until: float | None = None
    trying: bool = False


class Gate:
    """The limits that all runs of one fleet share.

    :param concurrency: associations at once over all modalities
    :param per_modality: associations at once with one modality; None leaves it to the modality's own limit
    :param breaker: when a modality is left alone
    :param observer: told when a breaker opens or closes
    """

    def __init__(
        self,
        concurrency: int,
        per_modality: int | None = None,
        breaker: Breaker | None = None,
        *,
        observer: Observer = NULL_OBSERVER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError("fleet.concurrency", concurrency, "at least one association at once")
        if per_modality is not None and per_modality < 1:
            raise ConfigurationError("fleet.per_modality", per_modality, "at least one association at once")
        self.concurrency = concurrency
        self._per_modality = per_modality
        self._breaker = breaker or Breaker()
        self._observer = observer
        self._clock = clock
        self._running: defaultdict[str, int] = defaultdict(int)
        self._total = 0
        self._circuits: dict[str, _Circuit] = {}
        self._listeners: set[Callable[[], None]] = set()

    @property
    def running(self) -> int:
        """Operations under way."""
        return self._total

    @property
    def is_shared(self) -> bool:
        """Whether more than one waits for places."""
        return len(self._listeners) > 1

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called whenever somebody leaves; returns what ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def enter(self, modality: Modality) -> Decision:
        """Ask for a place; on GO it is taken, and :meth:`leave` gives it back."""
        name = modality.name
        if self._total >= self.concurrency:
            return Decision.WAIT_FOR_ANY
        if self._running[name] >= (self._per_modality or modality.limits.per_modality):
            return Decision.WAIT_FOR_MODALITY
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.open_until is not None:
            if circuit.trying or self._clock() < circuit.open_until:
                return Decision.BREAKER_OPEN
            circuit.trying = True
        self._running[name] += 1
        self._total += 1
        return Decision.GO

    def leave(self, modality: Modality, reason: Reason) -> None:
        """Give a place back, and learn from how it went."""
        name = modality.name
        self._total -= 1
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        self._learn(name, reason)
        for listener in list(self._listeners):
            listener()

    def _learn(self, name: str, reason: Reason) -> None:
        circuit = self._circuits.get(name)
        if reason in _NEUTRAL:
            if circuit is not None:
                circuit.trying = False
            return
        if reason is Reason.OK:
            if circuit is not None:
                del self._circuits[name]
                if circuit.open_until is not None:
                    self._observer.breaker_changed(name, False)
            return
        if not self._breaker.failures:
            return
        circuit = self._circuits.setdefault(name, _Circuit())
        circuit.failures += 1
        circuit.trying = False
        if circuit.failures >= self._breaker.failures:
            was_open = circuit.open_until is not None
            circuit.open_until = self._clock() + self._breaker.open_for
            if not was_open:
                self._observer.breaker_changed(name, True)

    def __repr__(self) -> str:
        is_open = [name for name, circuit in self._circuits.items() if circuit.open_until is not None]
        return f"<Gate {self._total}/{self.concurrency} running, {len(is_open)} breakers open>"
