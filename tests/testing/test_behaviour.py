"""The grammar of faults, and how they are shared out."""

from __future__ import annotations

from collections import Counter

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.testing import Behaviour, Fault, assign


@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_is_named_by_its_value(fault: Fault) -> None:
    assert Behaviour.of(str(fault)).fault is fault
    assert Behaviour.of(fault) == Behaviour.of(str(fault))


@pytest.mark.parametrize(
    ("text", "behaviour"),
    [
        ("slow", Behaviour(Fault.SLOW, delay=0.5)),
        ("slow:0.02", Behaviour(Fault.SLOW, delay=0.02)),
        ("reject", Behaviour(Fault.REJECTING, result=1, source=1, diagnostic=3)),
        ("rejecting:1.7", Behaviour(Fault.REJECTING, source=1, diagnostic=7)),
        ("reject_transient", Behaviour(Fault.REJECTING_TRANSIENT, result=2, source=3, diagnostic=2)),
        ("rejecting_transient:3", Behaviour(Fault.REJECTING_TRANSIENT, result=2, source=3, diagnostic=2, first=3)),
        ("failure_status:0xA700", Behaviour(Fault.FAILURE_STATUS, status=0xA700)),
        ("failure_status:272", Behaviour(Fault.FAILURE_STATUS, status=272)),
        ("endless_pending:ignore_cancel", Behaviour(Fault.ENDLESS_PENDING, honour_cancel=False)),
        (" Silent-After-Associate ", Behaviour(Fault.SILENT_AFTER_ASSOCIATE)),
    ],
)
def test_a_behaviour_is_made_of_its_text(text: str, behaviour: Behaviour) -> None:
    assert Behaviour.of(text) == behaviour


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sleepy",
        "slow:",
        "slow:-1",
        "slow:nan",
        "slow:inf",
        "slow:fast",
        "rejecting:1",
        "rejecting:1.x",
        "rejecting:999.1",
        "rejecting_transient:-1",
        "failure_status:0x10000",
        "failure_status:bad",
        "endless_pending:x",
        "silent:1",
    ],
)
def test_a_behaviour_that_makes_no_sense_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Behaviour.of(text)


def test_shares_are_of_the_whole_fleet_and_the_rest_is_healthy() -> None:
    behaviours = assign(200, "silent=5%, reject=2%,slow:0.5=10%,refusing=3")
    assert Counter(behaviour.fault for behaviour in behaviours) == {
        Fault.SILENT: 10,
        Fault.REJECTING: 4,
        Fault.SLOW: 20,
        Fault.REFUSING: 3,
        Fault.HEALTHY: 163,
    }


def test_the_same_seed_gives_the_same_fleet_and_another_another() -> None:
    assert assign(100, "silent=50%") == assign(100, "silent=50%")
    assert assign(100, "silent=50%") != assign(100, "silent=50%", seed=1)


def test_faults_are_spread_over_the_fleet() -> None:
    faulty = [index for index, behaviour in enumerate(assign(1_000, "silent=10%")) if behaviour.fault is Fault.SILENT]
    assert min(faulty) < 100
    assert max(faulty) > 900


@pytest.mark.parametrize(
    "faults",
    [
        "silent",
        "silent=",
        "silent=x",
        "silent=101%",
        "silent=-1",
        "silent=1.5",
        "silent=nan%",
        "silent=60%,slow=60%",
        "silent=11",
    ],
)
def test_a_bad_specification_is_a_configuration_error(faults: str) -> None:
    with pytest.raises(ConfigurationError):
        assign(10, faults)
