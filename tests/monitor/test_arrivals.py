"""What arrived is counted by who sent it, whatever they call themselves."""

from __future__ import annotations

from asyncdicom.monitor import arrivals
from asyncdicom.monitor.arrivals import OTHERS, Arrivals


def test_what_is_kept_and_what_is_refused_count_apart() -> None:
    counted = Arrivals(clock=lambda: 1000.0)
    counted.store_ended("CT1 ", 0x0000, 500, 0.1)
    counted.store_ended("CT1", 0xB007, 100, 0.1)
    counted.store_ended("CT1", 0xA700, 900, 0.1)
    (arrived,) = counted.all()
    assert (arrived.calling_ae_title, arrived.instances, arrived.failed) == ("CT1", 2, 1)
    assert (arrived.received_bytes, arrived.last) == (600, 1000.0)


def test_so_many_titles_are_told_apart_and_the_rest_is_counted_together() -> None:
    counted = Arrivals()
    for number in range(arrivals._MOST + 50):
        counted.store_ended(f"T{number}", 0, 1, 0.1)
    titles = {arrived.calling_ae_title: arrived.instances for arrived in counted.all()}
    assert len(titles) == arrivals._MOST + 1
    assert titles[OTHERS] == 50


def test_what_was_told_before_does_not_change_afterwards() -> None:
    counted = Arrivals()
    counted.store_ended("CT1", 0, 1, 0.1)
    before = counted.all()
    counted.store_ended("CT1", 0, 1, 0.1)
    assert before[0].instances == 1


def test_duplicates_quarantine_and_what_waits_are_noted() -> None:
    counted = Arrivals()
    assert counted.pending is None
    counted.duplicate("identical")
    counted.duplicate("identical")
    counted.nonconformant(("no_study",), quarantined=True)
    counted.nonconformant(("odd_length",), quarantined=False)
    counted.outbox(3, 900.0)
    assert (counted.duplicates, counted.quarantined) == ({"identical": 2}, 1)
    assert (counted.pending, counted.oldest_pending) == (3, 900.0)
