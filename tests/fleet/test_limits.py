"""Who may go now is decided in one place, without awaiting."""

from __future__ import annotations

import pytest

from asyncdicom import Breaker, ConfigurationError, Limits, Modality, Observer, Reason
from asyncdicom.fleet.limits import Decision, Gate

A = Modality("a", "A", "127.0.0.1", 104)
B = Modality("b", "B", "127.0.0.1", 105)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Breakers(Observer):
    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []

    def breaker_changed(self, modality: str, is_open: bool) -> None:
        self.changes.append((modality, is_open))


def test_no_more_go_at_once_than_the_global_limit() -> None:
    gate = Gate(1)
    assert gate.enter(A) is Decision.GO
    assert gate.enter(B) is Decision.WAIT_FOR_ANY
    gate.leave(A, Reason.OK)
    assert gate.enter(B) is Decision.GO


def test_a_modality_has_its_own_limit() -> None:
    gate = Gate(10)
    assert gate.enter(A) is Decision.GO
    assert gate.enter(A) is Decision.WAIT_FOR_MODALITY
    assert gate.enter(B) is Decision.GO


def test_the_limit_of_the_fleet_stands_above_the_modality_s() -> None:
    gate = Gate(10, per_modality=2)
    roomy = Modality("r", "R", "127.0.0.1", limits=Limits(per_modality=5))
    assert [gate.enter(roomy) for _ in range(3)] == [Decision.GO, Decision.GO, Decision.WAIT_FOR_MODALITY]


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try_after_a_while() -> None:
    clock, seen = Clock(), Breakers()
    gate = Gate(10, breaker=Breaker(failures=2, open_for=60), observer=seen, clock=clock)
    for _ in range(2):
        assert gate.enter(A) is Decision.GO
        gate.leave(A, Reason.CONNECT_TIMEOUT)
    assert gate.enter(A) is Decision.BREAKER_OPEN
    assert gate.enter(B) is Decision.GO
    clock.now = 61
    assert gate.enter(A) is Decision.GO
    gate.leave(A, Reason.CONNECT_TIMEOUT)
    assert gate.enter(A) is Decision.BREAKER_OPEN
    clock.now = 122
    assert gate.enter(A) is Decision.GO
    gate.leave(A, Reason.OK)
    assert gate.enter(A) is Decision.GO
    assert seen.changes == [("a", True), ("a", False)]


def test_only_one_tries_while_a_breaker_is_half_open() -> None:
    clock = Clock()
    gate = Gate(10, per_modality=5, breaker=Breaker(failures=1, open_for=1), clock=clock)
    gate.enter(A)
    gate.leave(A, Reason.CONNECTION_LOST)
    clock.now = 2
    assert [gate.enter(A), gate.enter(A)] == [Decision.GO, Decision.BREAKER_OPEN]


@pytest.mark.parametrize("reason", [Reason.CANCELLED, Reason.DEADLINE, Reason.FAILURE_STATUS, Reason.NO_CONTEXT])
def test_what_says_nothing_about_the_modality_does_not_open_its_breaker(reason: Reason) -> None:
    gate = Gate(10, breaker=Breaker(failures=1, open_for=1))
    gate.enter(A)
    gate.leave(A, reason)
    assert gate.enter(A) is Decision.GO


def test_a_breaker_of_no_failures_never_opens() -> None:
    gate = Gate(10, breaker=Breaker(failures=0))
    for _ in range(20):
        assert gate.enter(A) is Decision.GO
        gate.leave(A, Reason.CONNECTION_LOST)


def test_the_state_shows_in_the_repr() -> None:
    gate = Gate(3, breaker=Breaker(failures=1))
    gate.enter(A)
    gate.enter(B)
    gate.leave(B, Reason.CONNECTION_LOST)
    assert repr(gate) == "<Gate 1/3 running, 1 breakers open>"


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": 1, "per_modality": 0}])
def test_a_limit_of_nobody_is_a_mistake(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        Gate(**wrong)
