"""Every metric that asyncdicom exposes, on a registry of its own.

Labels come from the configuration, never from what a peer claims: a calling AE title that no configured modality has is
counted as ``other``. A modality that leaves the configuration takes its series with it.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from asyncdicom._version import __version__
from asyncdicom.modality import Modality
from asyncdicom.monitor.exposition import Counters, Family, encode
from asyncdicom.monitor.state import ModalityState, States
from asyncdicom.observe import Observer
from asyncdicom.outcome import OPERATIONS, Operation, Outcome, Reason

OTHER = "other"
REJECTION_REASONS = (
    "calling_ae_title",
    "called_ae_title",
    "network",
    "limit",
    "draining",
    "user_identity",
    "tls",
    "artim",
    "protocol_version",
)
ABORT_REASONS = ("peer", "connection_lost", "idle", "stalled", "protocol_error", "too_large", "drain")
WRITE_STEPS = ("write", "sync", "name", "sync_folder", "index")
COMMITMENT_RESULTS = ("committed", "failed")
DOUBTS = ("sop_instance_uid", "sop_class_uid", "no_study", "foreign_group", "odd_length")
DUPLICATE_OUTCOMES = ("identical", "kept", "replaced", "added", "rejected")
# Out of resources, cannot understand, and the answer to an exception in a handler: there from the start, so that the
# first failure of a sender is seen as an increase. Other statuses appear with their first occurrence.
EXPECTED_STATUSES = (0xA700, 0xA900, 0xC000, 0xC211)
FAILURE_REASONS = tuple(reason for reason in Reason if reason is not Reason.OK)
# Above this, series for failures that never happened would be most of what is scraped.
_FAILURES_IN_ADVANCE = 256
# Characters of a name in an exemplar, whose labels may have 128 with their names.
_LONGEST_EXEMPLAR = 128 - len("modality")

_OPERATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Exposed:
    """What the configuration says that there is to measure.

    ``modalities``, ``swept``, ``sweeps`` and ``every`` may change by :meth:`Metrics.configure`; the others are there for the
    life of the process.

    :ivar modalities: the inventory
    :ivar swept: names of the modalities that are asked regularly, by operation
    :ivar sweeps: names of the sweeps
    :ivar every: seconds from the start of a sweep's run to the start of its next, by the sweep's name
    :ivar storage: whether there is a storage SCP
    :ivar archive: the folder whose free space counts, None for none
    :ivar event_targets: names of those who are told of events
    """

    modalities: tuple[Modality, ...] = ()
    swept: Mapping[Operation, frozenset[str]] = field(default_factory=dict)
    sweeps: tuple[str, ...] = ()
    every: Mapping[str, float] = field(default_factory=dict)
    storage: bool = False
    archive: Path | None = None
    event_targets: tuple[str, ...] = ()


@dataclass(slots=True)
class _Counts:
    """What is counted for one modality."""

    operations: dict[Operation, int] = field(default_factory=dict)
    failures: dict[tuple[Operation, Reason], int] = field(default_factory=dict)
    durations: dict[Operation, float] = field(default_factory=dict)


class Metrics(Observer):
    """An observer that counts, and renders what it counted.

    :param exposed: what there is to measure
    :param states: where the last outcome of each modality is kept
    """

    def __init__(self, exposed: Exposed, states: States) -> None:
        self.registry = CollectorRegistry()
        self._states = states
        self._counts: dict[str, _Counts] = {}
        self._calling: frozenset[str] = frozenset()
        self._exposed = exposed
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = Gauge(
            "asyncdicom_build_info",
            "Always 1; the labels say which version of asyncdicom runs on which Python.",
            ["version", "python_version"],
            registry=self.registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self._define_requests()
        self._define_storage(self.registry if exposed.storage else None)
        self._define_events(self.registry if exposed.event_targets else None)
        self.registry.register(_PerModality(self))
        if exposed.archive is not None:
            free = self._gauge("archive_free_bytes", "Bytes free on the file system of the archive.", self.registry)
            free.set_function(_free_bytes_of(exposed.archive))
        self.configure(exposed)

    def _define_requests(self) -> None:
        registry = self.registry
        self._duration = Histogram(
            "asyncdicom_operation_duration_seconds",
            "Time from the start to the end of an operation that we asked for, waiting for a slot not included.",
            ["operation"],
            buckets=_OPERATION_BUCKETS,
            registry=registry,
        )
        for operation in OPERATIONS:
            self._duration.labels(operation)
        self._scu = self._gauge("scu_associations", "Associations open now that we asked for.", registry)
        self._sweep_last = self._gauge(
            "sweep_last_run_timestamp_seconds", "When the sweep last ended; 0 before its first end.", registry, "sweep"
        )
        self._sweep_duration = self._gauge(
            "sweep_duration_seconds", "How long the last run of the sweep took; 0 before its first end.", registry, "sweep"
        )
        self._sweep_every = self._gauge(
            "sweep_interval_seconds", "How often the sweep is to run: seconds from one start to the next.", registry, "sweep"
        )
        self._lag = Histogram(
            "asyncdicom_loop_lag_seconds",
            "How much later than asked for the event loop resumed a sampler; high values mean that something blocks it.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    def _define_storage(self, registry: CollectorRegistry | None) -> None:
        self._scp = self._gauge("scp_associations", "Associations open now that peers asked for.", registry)
        self._rejected = self._counter(
            "scp_associations_rejected", "Requests for association that were rejected or turned away.", registry, "reason"
        )
        self._aborted = self._counter(
            "scp_associations_aborted", "Accepted associations that did not end with a release.", registry, "reason"
        )
        self._stores = self._counter("store_requests", "C-STORE requests that were answered.", registry, "calling_ae")
        self._store_failures = self._counter(
            "store_failures", "C-STORE requests answered with a status of failure.", registry, "calling_ae", "status"
        )
        self._store_bytes = self._counter(
            "store_received_bytes", "Bytes of the datasets that came by C-STORE.", registry, "calling_ae"
        )
        self._store_duration = Histogram(
            "asyncdicom_store_duration_seconds",
            "Time from the last fragment of an instance to its status being sent.",
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._steps = Histogram(
            "asyncdicom_write_duration_seconds",
            "Time of each step of keeping an instance: write, sync, name, sync_folder, index.",
            ["step"],
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self._in_flight = self._gauge("ingest_in_flight_bytes", "Bytes of instances held in memory now.", registry)
        self._budget = self._gauge("ingest_budget_bytes", "Bytes of instances that may be held in memory at once.", registry)
        self._duplicates = self._counter(
            "duplicates", "Instances that arrived again, by what became of them.", registry, "outcome"
        )
        self._committed = self._counter(
            "commitments_reported", "Instances that storage commitment was asked for, by what was reported.", registry, "result"
        )
        self._nonconformant = self._counter(
            "nonconformant",
            "Instances kept although they do not conform, by what is odd.",
            registry,
            "what",
        )
        self._quarantined = self._counter("quarantined", "Instances kept in quarantine.", registry)
        for doubt in DOUBTS:
            self._nonconformant.labels(doubt)
        for result in COMMITMENT_RESULTS:
            self._committed.labels(result)
        for reason in REJECTION_REASONS:
            self._rejected.labels(reason)
        for reason in ABORT_REASONS:
            self._aborted.labels(reason)
        for step in WRITE_STEPS:
            self._steps.labels(step)
        for outcome in DUPLICATE_OUTCOMES:
            self._duplicates.labels(outcome)

    def _define_events(self, registry: CollectorRegistry | None) -> None:
        self._outbox_pending = self._gauge("outbox_pending", "Events that wait to be delivered.", registry)
        self._outbox_oldest = self._gauge(
            "outbox_oldest_timestamp_seconds", "When the oldest event that waits happened; 0 when none waits.", registry
        )
        self._delivered = self._counter("events_delivered", "Events that a target took.", registry, "target")
        self._event_failures = self._counter("event_failures", "Attempts to deliver an event that failed.", registry, "target")
        self._studies = self._counter("studies_completed", "Studies that received no instance for the settling time.", registry)
        for target in self._exposed.event_targets:
            self._delivered.labels(target)
            self._event_failures.labels(target)

    def configure(self, exposed: Exposed) -> None:
        """Take another inventory and other sweeps: new ones appear with zeros, those that are gone vanish."""
        before, self._exposed = self._exposed, exposed
        counts: dict[str, _Counts] = {}
        in_advance = len(exposed.modalities) <= _FAILURES_IN_ADVANCE
        for modality in exposed.modalities:
            name = modality.name
            known = counts[name] = self._counts.get(name) or _Counts()
            for operation in ("echo", *(operation for operation, names in exposed.swept.items() if name in names)):
                known.operations.setdefault(operation, 0)
                for reason in FAILURE_REASONS if in_advance else ():
                    known.failures.setdefault((operation, reason), 0)
        self._counts = counts
        for sweep in set(before.sweeps) - set(exposed.sweeps):
            self._sweep_last.remove(sweep)
            self._sweep_duration.remove(sweep)
            self._sweep_every.remove(sweep)
        for sweep in exposed.sweeps:
            self._sweep_last.labels(sweep)
            self._sweep_duration.labels(sweep)
            self._sweep_every.labels(sweep).set(exposed.every.get(sweep, 0.0))
        calling = frozenset(modality.ae_title for modality in exposed.modalities)
        for gone in self._calling - calling:
            self._stores.remove(gone)
            self._store_bytes.remove(gone)
            self._store_failures.remove_by_label("calling_ae", gone)
        for title in (*calling, OTHER):
            self._stores.labels(title)
            self._store_bytes.labels(title)
            for status in EXPECTED_STATUSES if in_advance or title == OTHER else ():
                self._store_failures.labels(title, f"0x{status:04X}")
        self._calling = calling

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Render every metric. It reads /proc and takes long with many series: call it in a thread, never on the loop.

        :param accept: the Accept header: OpenMetrics for who asks for it, else the text format
        :return: the body and its content type
        """
        return encode(_Shown(self.registry, self._counts.__contains__), accept)

    async def sample_loop_lag(self, every: float = 0.05) -> None:
        """Measure until cancelled how late the event loop is.

        :param every: seconds between samples
        """
        while True:
            due = time.monotonic() + every
            await anyio.sleep(every)
            self._lag.observe(max(0.0, time.monotonic() - due))

    # We call them.
    def scu_association_opened(self, modality: str) -> None:
        """Count it."""
        self._scu.inc()

    def scu_association_closed(self, modality: str) -> None:
        """Count it."""
        self._scu.dec()

    def operation_ended(self, outcome: Outcome) -> None:
        """Count it, unless its modality has left the configuration."""
        counts = self._counts.get(outcome.modality)
        if counts is None:
            return
        operation = outcome.operation
        counts.operations[operation] = counts.operations.get(operation, 0) + 1
        if not outcome.ok:
            key = (operation, outcome.reason)
            counts.failures[key] = counts.failures.get(key, 0) + 1
        if outcome.reason is not Reason.BREAKER_OPEN:
            # What was never tried took no time.
            counts.durations[operation] = outcome.duration
            self._duration.labels(operation).observe(outcome.duration, _exemplar(outcome))

    def sweep_ended(self, sweep: str, seconds: float) -> None:
        """A sweep has asked everybody.

        :param sweep: its name
        :param seconds: how long it took
        """
        if sweep in self._exposed.sweeps:
            self._sweep_last.labels(sweep).set_to_current_time()
            self._sweep_duration.labels(sweep).set(seconds)

    # They call us.
    def scp_association_opened(self, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self._scp.inc()

    def scp_association_closed(self, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self._scp.dec()

    def scp_association_rejected(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self._rejected.labels(reason if reason in REJECTION_REASONS else OTHER).inc()

    def scp_association_aborted(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        """Count it."""
        self._aborted.labels(reason if reason in ABORT_REASONS else OTHER).inc()

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """Count the instance."""
        title = calling_ae_title.strip()
        title = title if title in self._calling else OTHER
        self._stores.labels(title).inc()
        self._store_bytes.labels(title).inc(size)
        self._store_duration.observe(seconds)
        if status != 0x0000 and not 0xB000 <= status <= 0xBFFF:
            self._store_failures.labels(title, f"0x{status:04X}").inc()

    def ingest_in_flight(self, size: int, budget: int) -> None:
        """Note it."""
        self._in_flight.set(size)
        self._budget.set(budget)

    # We keep it, and tell of it.
    def write_step(self, step: str, seconds: float) -> None:
        """Note it."""
        self._steps.labels(step if step in WRITE_STEPS else OTHER).observe(seconds)

    def commitment_reported(self, calling_ae_title: str, committed: int, failed: int) -> None:
        """Count them."""
        self._committed.labels("committed").inc(committed)
        self._committed.labels("failed").inc(failed)

    def nonconformant(self, doubts: tuple[str, ...], *, quarantined: bool) -> None:
        """Count it."""
        for doubt in doubts:
            self._nonconformant.labels(doubt if doubt in DOUBTS else OTHER).inc()
        if quarantined:
            self._quarantined.inc()

    def duplicate(self, outcome: str) -> None:
        """Count it."""
        self._duplicates.labels(outcome if outcome in DUPLICATE_OUTCOMES else OTHER).inc()

    def event_delivered(self, target: str) -> None:
        """Count an event that a configured target took."""
        self._delivered.labels(target).inc()

    def event_failed(self, target: str) -> None:
        """Count a failed attempt to deliver."""
        self._event_failures.labels(target).inc()

    def study_completed(self) -> None:
        """Count it."""
        self._studies.inc()

    def outbox(self, pending: int, oldest: float | None) -> None:
        """Note how many events wait.

        :param oldest: when the oldest of them happened, in seconds since the epoch
        """
        self._outbox_pending.set(pending)
        self._outbox_oldest.set(oldest or 0)

    def _gauge(self, name: str, words: str, registry: CollectorRegistry | None, *labels: str) -> Gauge:
        return Gauge(f"asyncdicom_{name}", words, labels, registry=registry)

    def _counter(self, name: str, words: str, registry: CollectorRegistry | None, *labels: str) -> Counters:
        return Counters(f"asyncdicom_{name}", words, labels, registry)


class _PerModality(Collector):
    """The series that have a modality: made when they are asked for, so that they vanish with it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the families. Copies are taken at once: the loop goes on counting meanwhile."""
        counts = self._metrics._counts.copy()
        operations = Family(
            "counter", "asyncdicom_operations", "Operations that we asked of a modality.", labels=["operation", "modality"]
        )
        failures = Family(
            "counter",
            "asyncdicom_operation_failures",
            "Operations that did not succeed, by reason; see the reasons in the documentation.",
            labels=["operation", "modality", "reason"],
        )
        durations = Family(
            "gauge",
            "asyncdicom_modality_last_duration_seconds",
            "How long the last operation on the modality took; NaN before the first.",
            labels=["modality", "operation"],
        )
        for name, known in counts.items():
            for operation, value in list(known.operations.items()):
                operations.add_metric([operation, name], value)
                durations.add_metric([name, operation], known.durations.get(operation, math.nan))
            for (operation, reason), value in list(known.failures.items()):
                failures.add_metric([operation, name, reason.value], value)
        yield from (operations, failures, durations)
        yield from self._states()

    def _states(self) -> Iterable[Metric]:
        states = self._metrics._states.all()
        swept = frozenset[str]().union(*self._metrics._exposed.swept.values())
        up = Family(
            "gauge",
            "asyncdicom_modality_up",
            "1 when every operation that is swept succeeded the last time, 0 when one did not, NaN before the first.",
            labels=["modality"],
        )
        success = Family(
            "gauge",
            "asyncdicom_modality_last_success_timestamp_seconds",
            "When the modality last answered with success; 0 when it did not since the start.",
            labels=["modality"],
        )
        breaker = Family(
            "gauge",
            "asyncdicom_breaker_open",
            "1 while the modality is left alone after repeated failures.",
            labels=["modality"],
        )
        for state in states:
            name = state.modality.name
            if state.succeeds is not None or name in swept:
                # One that nobody asks has no series: a NaN for ever would spoil every sum.
                up.add_metric([name], math.nan if state.succeeds is None else float(state.succeeds))
            success.add_metric([name], state.last_success or 0.0)
            breaker.add_metric([name], float(state.breaker_open))
        yield from (up, success, breaker)
        if self._metrics._exposed.storage:
            received = Family(
                "gauge",
                "asyncdicom_modality_last_received_timestamp_seconds",
                "When the modality last sent us an instance; 0 when it did not since the start.",
                labels=["modality"],
            )
            for state in states:
                received.add_metric([state.modality.name], state.last_received or 0.0)
            yield received
            yield from _silences(states)


def _silences(states: Iterable[ModalityState]) -> Iterable[Metric]:
    quiet = Family(
        "gauge",
        "asyncdicom_modality_quiet",
        "1 while the modality has sent nothing for longer than expected, 0 while it has; only where arrivals are expected.",
        labels=["modality"],
    )
    expected = Family(
        "gauge",
        "asyncdicom_modality_expected_by_timestamp_seconds",
        "When an instance of the modality is expected at the latest; 0 while too little is known to expect one.",
        labels=["modality"],
    )
    for state in states:
        if state.modality.arrivals is not None:
            quiet.add_metric([state.modality.name], float(state.quiet_since is not None))
            expected.add_metric([state.modality.name], state.expected_by or 0.0)
    yield from (quiet, expected)


class _Shown(Collector):
    """A registry without the ``_created`` series, which double the counters and which Prometheus does not need, and without
    exemplars of modalities that have left the configuration.

    :param named: whether a modality of this name is in the configuration
    """

    def __init__(self, registry: CollectorRegistry, named: Callable[[str], bool]) -> None:
        self._registry = registry
        self._named = named

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        for metric in self._registry.collect():
            if not isinstance(metric, Family):
                metric.samples = [self._shown(sample) for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def _shown(self, sample: Sample) -> Sample:
        gone = sample.exemplar is not None and not self._named(sample.exemplar.labels.get("modality", ""))
        return sample._replace(exemplar=None) if gone else sample


def _exemplar(outcome: Outcome) -> dict[str, str] | None:
    """Which modality stands for a bucket of durations: from the slow bucket to the slow device without a guess.

    None for C-STORE, where each instance would pay for it, and for a name beyond what OpenMetrics lets an exemplar hold.
    """
    if outcome.operation == "store" or len(outcome.modality) > _LONGEST_EXEMPLAR:
        return None
    return {"modality": outcome.modality}


def _free_bytes_of(directory: Path) -> Callable[[], float]:
    def free() -> float:
        try:
            status = os.statvfs(directory)
        except OSError:
            # An archive that is gone has no space, and the metric must not take the whole scrape with it.
            return 0.0
        return float(status.f_bavail * status.f_frsize)

    return free
