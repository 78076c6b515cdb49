"""What of a fleet is shown, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncdicom.modality import Modality
from asyncdicom.monitor.state import ModalityState, States
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.web.selection import ROWS, Filter, select


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def states() -> list[ModalityState]:
    """Two that are down, one that was never asked, one that is up."""
    clock = Clock()
    known = States(
        [
            Modality("up", ae_title="CT1", host="ct.example", groups=("a", "b")),
            Modality("old", ae_title="MR1", host="mr.example", groups=("a",)),
            Modality("new", ae_title="X", host="10.0.0.9", port=4242),
            Modality("nobody", ae_title="X", host="10.0.0.8"),
        ],
        clock=clock,
    )
    known.operation_ended(Outcome("up", "echo", Reason.OK))
    known.operation_ended(Outcome("old", "echo", Reason.ABORTED))
    clock.now += 1
    known.operation_ended(Outcome("new", "echo", Reason.ABORTED))
    return known.all()


def names(states: list[ModalityState], **wanted: object) -> list[str]:
    return [state.modality.name for state in select(states, Filter(**wanted)).rows]  # type: ignore[arg-type]


def test_worst_comes_first_and_what_broke_last_before_that(states: list[ModalityState]) -> None:
    assert names(states) == ["new", "old", "nobody", "up"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"text": "ct1"}, ["up"]),
        ({"text": " EXAMPLE "}, ["old", "up"]),
        ({"text": "4242"}, ["new"]),
        ({"condition": "down"}, ["new", "old"]),
        ({"condition": "nonsense"}, ["new", "old", "nobody", "up"]),
        ({"failing": True}, ["new", "old"]),
        ({"failing": True, "group": "a"}, ["old"]),
        ({"group": "b"}, ["up"]),
        ({"condition": "quiet"}, []),
    ],
)
def test_a_filter_leaves_what_it_names(states: list[ModalityState], wanted: dict[str, object], found: list[str]) -> None:
    assert names(states, **wanted) == found


def test_what_is_quiet_counts_as_failing_although_it_answers(states: list[ModalityState]) -> None:
    states = [replace(state, quiet_since=900.0 if state.modality.name == "up" else None) for state in states]
    assert names(states) == ["new", "old", "up", "nobody"]
    assert names(states, failing=True) == ["new", "old", "up"]
    assert names(states, condition="quiet") == ["up"]
    assert select(states, Filter()).counts == {"down": 2, "unknown": 1, "up": 1, "quiet": 1}


def test_counts_and_groups_are_of_all_and_rows_of_the_page() -> None:
    many = States(
        [Modality(f"m{number:03}", ae_title="X", host="h", groups=(f"g{number % 2}",)) for number in range(250)]
    ).all()
    last = select(many, Filter(page=9))
    assert (len(last.rows), last.found, last.page, last.pages) == (50, 250, 3, 3)
    assert last.counts["unknown"] == 250
    assert list(last.groups) == ["g0", "g1"]
    assert len(select(many, Filter()).rows) == ROWS


@pytest.mark.parametrize(
    ("query", "address"),
    [
        ({}, "/"),
        ({"q": "ct 1", "failing": "1"}, "/?q=ct+1&failing=1"),
        ({"state": "down", "group": "a", "page": "3"}, "/?state=down&group=a&page=3"),
        ({"page": "-1"}, "/"),
        ({"page": "\u0663"}, "/"),
        ({"page": "9" * 500, "failing": "yes"}, "/"),
    ],
)
def test_a_filter_has_an_address_and_is_read_from_it(query: dict[str, str], address: str) -> None:
    shown = Filter.of(query)
    assert shown.address(page=shown.page) == address


def test_another_filter_begins_at_its_first_page() -> None:
    assert Filter(page=7, text="a").address(condition="up") == "/?q=a&state=up"
