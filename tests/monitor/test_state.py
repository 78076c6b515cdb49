"""The state of a modality follows from what came back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncdicom.modality import Modality
from asyncdicom.monitor.state import KEPT_OUTCOMES, Broadcast, ModalityState, States, StorageState
from asyncdicom.observe import Observer
from asyncdicom.outcome import Operation, Outcome, Reason

CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1", port=104)
MR1 = Modality("mr1", ae_title="MR1", host="127.0.0.2", port=104)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def outcome(name: str = "ct1", reason: Reason = Reason.OK, operation: Operation = "echo", duration: float = 0.25) -> Outcome:
    return Outcome(name, operation, reason, duration=duration)


def state_of(states: States, name: str = "ct1") -> ModalityState:
    state = states.get(name)
    assert state is not None
    return state


def test_a_modality_is_unknown_before_its_first_outcome() -> None:
    state = state_of(States([CT1]))
    assert (state.condition, state.since, state.latency, state.telling) == ("unknown", None, None, None)


def test_since_is_the_moment_of_the_last_change() -> None:
    clock = Clock()
    changes: list[ModalityState] = []
    states = States([CT1], clock=clock, on_change=changes.append)
    for now, reason in ((1, Reason.OK), (2, Reason.OK), (3, Reason.CONNECT_TIMEOUT), (4, Reason.ABORTED), (5, Reason.OK)):
        clock.now = now
        states.operation_ended(outcome(reason=reason))
    assert [(change.condition, change.since) for change in changes] == [("up", 1), ("down", 3), ("up", 5)]
    assert state_of(states).last_success == 5
    assert changes[1].failures == 1
    assert state_of(states).failures == 0


_PATIENT = Modality("ct1", ae_title="CT1", host="127.0.0.1", port=104, down_after=3, up_after=2)


def told_of(modality: Modality, outcomes: str, operation: Operation = "echo") -> str:
    """The condition after each outcome: ``.`` succeeds, ``x`` fails, ``b`` was not asked."""
    states = States([modality])
    reasons = {".": Reason.OK, "x": Reason.CONNECT_TIMEOUT, "b": Reason.BREAKER_OPEN}
    told = ""
    for mark in outcomes:
        states.operation_ended(outcome(reason=reasons[mark], operation=operation))
        told += {"up": "U", "down": "D", "unknown": "?"}[state_of(states).condition]
    return told


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ("x", "D"),
        (".", "U"),
        (".xx.xx.xxx", "UUUUUUUUUD"),
        ("x.x.x..", "DDDDDDU"),
        ("x..xxx..", "DDUUUDDU"),
        (".xxbbx.b.", "UUUUUDDDU"),
    ],
)
def test_the_first_outcome_decides_at_once_and_then_several_in_a_row(outcomes: str, told: str) -> None:
    assert told_of(_PATIENT, outcomes) == told


def test_by_default_every_outcome_decides() -> None:
    assert told_of(CT1, ".x.xx.") == "UDUDDU"


def test_each_operation_counts_for_itself_and_all_of_them_have_to_work() -> None:
    changes: list[str] = []
    states = States([_PATIENT], on_change=lambda state: changes.append(state.condition))
    for operation, reason in (
        ("echo", Reason.OK),
        ("find", Reason.OK),
        # Three failures in a row, but of two operations.
        ("echo", Reason.ABORTED),
        ("find", Reason.ABORTED),
        ("echo", Reason.ABORTED),
        ("echo", Reason.OK),
        ("find", Reason.ABORTED),
        ("find", Reason.ABORTED),
        # Echoes that succeed do not make up for queries that do not.
        ("echo", Reason.OK),
        ("echo", Reason.OK),
        ("find", Reason.OK),
        ("find", Reason.OK),
    ):
        states.operation_ended(outcome(operation=operation, reason=reason))  # type: ignore[arg-type]
    assert changes == ["up", "down", "up"]


def test_the_last_outcome_is_shown_at_once_while_the_condition_waits() -> None:
    states = States([_PATIENT])
    for reason in (Reason.OK, Reason.CONNECT_REFUSED):
        states.operation_ended(outcome(reason=reason))
    state = state_of(states)
    assert (state.condition, state.succeeds) == ("up", False)
    assert state.telling is not None
    assert state.telling.reason is Reason.CONNECT_REFUSED


def test_a_question_that_somebody_had_changes_nothing() -> None:
    states = States([CT1])
    states.operation_ended(replace(outcome(reason=Reason.NO_CONTEXT), tells=False))
    assert state_of(states) == ModalityState(CT1)


def test_an_echo_that_succeeds_does_not_hide_a_find_that_fails() -> None:
    states = States([CT1])
    states.operation_ended(outcome(operation="find", reason=Reason.OPERATION_TIMEOUT))
    states.operation_ended(outcome())
    state = state_of(states)
    assert state.condition == "down"
    assert state.telling is not None
    assert state.telling.reason is Reason.OPERATION_TIMEOUT


def test_a_store_or_a_cancelled_run_says_nothing_of_the_modality() -> None:
    states = States([CT1])
    states.operation_ended(outcome(operation="store", reason=Reason.FAILURE_STATUS))
    states.operation_ended(outcome(reason=Reason.CANCELLED))
    states.operation_ended(outcome(name="unknown"))
    assert state_of(states).condition == "unknown"


def test_an_open_breaker_leaves_the_reason_readable() -> None:
    states = States([CT1])
    states.operation_ended(outcome(reason=Reason.CONNECT_REFUSED))
    states.breaker_changed("ct1", True)
    states.operation_ended(outcome(reason=Reason.BREAKER_OPEN))
    state = state_of(states)
    assert state.breaker_open
    assert state.telling is not None
    assert state.telling.reason is Reason.CONNECT_REFUSED
    assert [sample.reason for sample in state.samples] == [Reason.CONNECT_REFUSED, Reason.BREAKER_OPEN]


def test_the_last_outcomes_are_bounded() -> None:
    states = States([CT1])
    for index in range(KEPT_OUTCOMES + 5):
        states.operation_ended(outcome(duration=index))
    samples = state_of(states).samples
    assert len(samples) == KEPT_OUTCOMES
    assert samples[-1].duration == KEPT_OUTCOMES + 4


def test_a_reload_keeps_the_state_of_what_stays_the_same() -> None:
    states = States([CT1, MR1])
    states.operation_ended(outcome("ct1"))
    states.operation_ended(outcome("mr1"))
    moved = Modality("mr1", ae_title="MR1", host="127.0.0.3", port=104)
    states.configure([Modality("ct1", ae_title="CT1", host="127.0.0.1", port=104, groups=("new",)), moved])
    assert state_of(states).condition == "up"
    assert state_of(states).modality.groups == ("new",)
    assert state_of(states, "mr1").condition == "unknown"
    states.configure([])
    assert states.get("ct1") is None


def test_an_instance_is_noted_for_the_modality_with_the_calling_ae_title() -> None:
    states, storage = States([CT1, MR1], clock=Clock()), StorageState(clock=Clock())
    for observer in (states, storage):
        observer.store_ended("CT1 ", 0x0000, 100, 0.1)
        observer.store_ended("MR1", 0xA700, 100, 0.1)
    assert state_of(states).last_received == 1000.0
    assert state_of(states, "mr1").last_received is None
    assert (storage.instances, storage.failed, storage.received_bytes) == (1, 1, 100)


def test_a_broadcast_reaches_everybody_and_costs_nothing_where_nobody_listens() -> None:
    states, storage = States([CT1]), StorageState()
    both = Broadcast(states, storage)
    both.store_ended("CT1", 0, 1, 0.0)
    both.scp_association_opened("CT1", "127.0.0.1")
    assert state_of(states).last_received is not None
    assert (storage.instances, storage.associations) == (1, 1)
    assert vars(both).keys() == {
        *("operation_ended", "breaker_changed", "store_ended"),
        *("scp_association_opened", "scp_association_closed", "scp_association_rejected"),
    }
    assert isinstance(both, Observer)
