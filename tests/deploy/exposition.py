"""What a service with every part configured exposes, and which metrics a query speaks of."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from asyncdicom.modality import Arrivals, Modality
from asyncdicom.monitor.metrics import Exposed, Metrics
from asyncdicom.monitor.state import Broadcast, States
from asyncdicom.outcome import Outcome, Reason

ROOT = Path(__file__).resolve().parent.parent.parent

_MODALITIES = (
    Modality("ct1", ae_title="CT1", host="127.0.0.1", arrivals=Arrivals()),
    Modality("mr1", ae_title="MR1", host="127.0.0.2"),
)
_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"})


def full_states() -> States:
    """The states of a fleet of two."""
    return States(_MODALITIES)


def full_metrics(archive: Path, states: States | None = None) -> Metrics:
    """Metrics of a service that has everything: sweeps, a storage SCP, an archive, a target of events.

    :param archive: a folder
    """
    states = states or full_states()
    exposed = Exposed(
        modalities=_MODALITIES,
        swept={"echo": frozenset({"ct1", "mr1"})},
        sweeps=("echo",),
        every={"echo": 30.0},
        storage=True,
        archive=archive,
        event_targets=("pipeline",),
    )
    return Metrics(exposed, states)


def watching_metrics() -> Metrics:
    """Metrics of a service that watches a fleet, and receives nothing."""
    exposed = Exposed(modalities=_MODALITIES, swept={"echo": frozenset({"ct1", "mr1"})}, sweeps=("echo",), every={"echo": 30.0})
    return Metrics(exposed, full_states())


def exercise(metrics: Metrics, states: States) -> None:
    """Let a little of everything happen."""
    observer = Broadcast(states, metrics)
    for outcome in (
        Outcome("ct1", "echo", Reason.OK, duration=0.02),
        Outcome("mr1", "echo", Reason.CONNECT_TIMEOUT, duration=3.0),
    ):
        observer.operation_ended(outcome)
    states.silence_judged("ct1", expected_by=1.0, quiet_since=2.0)
    metrics.sweep_ended("echo", 3.0)
    observer.scp_association_opened("CT1", "127.0.0.1")
    observer.store_ended("CT1", 0x0000, 525_000, 0.004)
    observer.store_ended("CT1", 0xA700, 525_000, 0.001)
    observer.scu_association_opened("ct1")
    observer.breaker_changed("mr1", True)
    observer.nonconformant(("no_study",), quarantined=True)
    observer.commitment_reported("CT1", 5, 1)
    observer.scp_association_rejected("limit", "CT1", "127.0.0.1")
    observer.scp_association_aborted("idle", "CT1", "127.0.0.1")
    metrics.write_step("sync", 0.003)
    metrics.duplicate("identical")
    metrics.ingest_in_flight(525_000, 256 << 20)
    metrics.outbox(1, 1.0)
    metrics.event_delivered("pipeline")
    metrics.event_failed("pipeline")
    metrics.study_completed()


def exposed_names(metrics: Metrics) -> set[str]:
    """The names of every series, those of histograms as ``_bucket``, ``_sum`` and ``_count``."""
    body, _ = metrics.render()
    return {sample.name for family in text_string_to_metric_families(body.decode()) for sample in family.samples}


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    text = re.sub(r'"(\\.|[^"\\])*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\w|\s*\()", text)
    return {name for name in names if name.lower() not in _KEYWORDS}
