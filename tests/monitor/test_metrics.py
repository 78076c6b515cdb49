"""The metrics: all of them, from the start, with labels from the configuration alone."""

from __future__ import annotations

import gc
import math
import random
import re
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from asyncdicom.modality import Arrivals, Modality
from asyncdicom.monitor.metrics import FAILURE_REASONS, Exposed, Metrics
from asyncdicom.monitor.state import Broadcast, States
from asyncdicom.outcome import Outcome, Reason
from tests.deploy.exposition import exercise, full_metrics, full_states

# As a scraper asks that prefers OpenMetrics.
_OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1", arrivals=Arrivals(3600.0))
MR1 = Modality("mr1", ae_title="MR1", host="127.0.0.2")

NAMES = (
    "build_info",
    "operations_total",
    "operation_failures_total",
    "operation_duration_seconds",
    "modality_up",
    "modality_last_success_timestamp_seconds",
    "modality_last_duration_seconds",
    "modality_last_received_timestamp_seconds",
    "modality_quiet",
    "modality_expected_by_timestamp_seconds",
    "sweep_last_run_timestamp_seconds",
    "sweep_duration_seconds",
    "sweep_interval_seconds",
    "breaker_open",
    "scu_associations",
    "scp_associations",
    "scp_associations_rejected_total",
    "scp_associations_aborted_total",
    "store_requests_total",
    "store_failures_total",
    "store_received_bytes_total",
    "store_duration_seconds",
    "write_duration_seconds",
    "ingest_in_flight_bytes",
    "ingest_budget_bytes",
    "duplicates_total",
    "archive_free_bytes",
    "outbox_pending",
    "outbox_oldest_timestamp_seconds",
    "events_delivered_total",
    "event_failures_total",
    "studies_completed_total",
    "loop_lag_seconds",
)


class Observed:
    def __init__(self, exposed: Exposed) -> None:
        self.states = States(exposed.modalities)
        self.metrics = Metrics(exposed, self.states)
        self.observer = Broadcast(self.states, self.metrics)

    def configure(self, exposed: Exposed) -> None:
        self.states.configure(exposed.modalities)
        self.metrics.configure(exposed)

    def text(self) -> str:
        return self.metrics.render()[0].decode()

    def series(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def value(self, name: str, **labels: str) -> float:
        (value,) = [v for n, found, v in self.series() if n == f"asyncdicom_{name}" and found == labels]
        return value


def everything(tmp_path: Path, *modalities: Modality) -> Exposed:
    names = frozenset(modality.name for modality in modalities)
    return Exposed(
        modalities, {"echo": names}, ("echo",), {"echo": 30.0}, storage=True, archive=tmp_path, event_targets=("pipeline",)
    )


@pytest.fixture
def observed(tmp_path: Path) -> Observed:
    return Observed(everything(tmp_path, CT1, MR1))


def test_every_metric_has_a_sample_before_anything_happened(observed: Observed) -> None:
    exposed = {name for name, _, _ in observed.series()}
    missing = [name for name in NAMES if not exposed & {f"asyncdicom_{name}", f"asyncdicom_{name}_count"}]
    assert missing == []
    assert {"process_open_fds", "python_info", "python_gc_collections_total"} <= exposed


def test_every_metric_moves_when_what_it_speaks_of_happens(tmp_path: Path) -> None:
    states = full_states()
    metrics = full_metrics(tmp_path, states)

    def values() -> dict[str, list[str]]:
        families = text_string_to_metric_families(metrics.render()[0].decode())
        ours = (family for family in families if family.name.startswith("asyncdicom_"))
        return {family.name: [repr(sample) for sample in family.samples] for family in ours}

    before = values()
    exercise(metrics, states)
    after = values()
    still = {name.removeprefix("asyncdicom_") for name in before if before[name] == after[name]}
    # The first two say how something is; the disk and the loop move by themselves.
    assert still - {"archive_free_bytes"} == {"build_info", "sweep_interval_seconds", "loop_lag_seconds"}


def test_every_metric_says_what_it_is(observed: Observed) -> None:
    for family in text_string_to_metric_families(observed.text()):
        if family.name.startswith("asyncdicom_"):
            assert len(family.documentation) > 20, family.name
            assert family.documentation.endswith("."), family.name


def test_a_part_that_is_not_configured_exposes_nothing() -> None:
    text = Observed(Exposed()).text()
    assert "asyncdicom_store" not in text
    assert "asyncdicom_outbox" not in text
    assert "asyncdicom_archive" not in text


@pytest.mark.peer("promtool")
def test_promtool_finds_nothing_to_say(observed: Observed) -> None:
    result = subprocess.run(["promtool", "check", "metrics"], input=observed.text(), text=True, capture_output=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_openmetrics_is_rendered_for_who_asks_for_it(observed: Observed) -> None:
    body, content_type = observed.metrics.render(_OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert "asyncdicom_operations" in {family.name for family in parse_openmetrics(body.decode())}
    assert observed.metrics.render("text/html")[1].startswith("text/plain")


def _exemplars(observed: Observed) -> dict[str, list[dict[str, str]]]:
    """The labels of the exemplars of each family, as a reader of OpenMetrics gets them."""
    body, _ = observed.metrics.render(_OPENMETRICS)
    found: dict[str, list[dict[str, str]]] = {}
    for family in parse_openmetrics(body.decode()):
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, []).append(sample.exemplar.labels)
    return found


def test_an_exemplar_names_the_modality_that_was_slow_and_an_instance_pays_for_none(observed: Observed) -> None:
    observed.observer.operation_ended(Outcome("ct1", "echo", Reason.OK, duration=0.02))
    observed.observer.operation_ended(Outcome("mr1", "echo", Reason.CONNECT_TIMEOUT, duration=3.0))
    observed.observer.operation_ended(Outcome("mr1", "store", Reason.OK, duration=0.2))
    observed.observer.store_ended("CT1", 0x0000, 1_000, 0.01)
    assert _exemplars(observed) == {"asyncdicom_operation_duration_seconds": [{"modality": "ct1"}, {"modality": "mr1"}]}
    assert " # {" not in observed.text()


def test_no_exemplar_names_a_modality_that_was_removed(observed: Observed, tmp_path: Path) -> None:
    observed.observer.operation_ended(Outcome("mr1", "echo", Reason.OK, duration=0.02))
    observed.configure(everything(tmp_path, CT1))
    assert _exemplars(observed) == {}


def test_a_name_too_long_for_an_exemplar_is_counted_without(tmp_path: Path) -> None:
    long = Modality("m" * 200, ae_title="LONG", host="127.0.0.1")
    observed = Observed(everything(tmp_path, long))
    observed.observer.operation_ended(Outcome(long.name, "echo", Reason.OK, duration=0.02))
    assert observed.value("operation_duration_seconds_count", operation="echo") == 1
    assert _exemplars(observed) == {}


def test_ten_thousand_calling_ae_titles_add_no_series(observed: Observed) -> None:
    before = sum(1 for _ in observed.series())
    source = random.Random(7)
    for _ in range(10_000):
        title = "".join(source.choices(string.printable, k=16))
        observed.observer.store_ended(title, 0, 10, 0.001)
        observed.observer.scp_association_opened(title, "127.0.0.1")
        observed.observer.scp_association_rejected("calling_ae_title", title, "127.0.0.1")
        observed.observer.scp_association_aborted("peer", title, "127.0.0.1")
        observed.observer.scp_association_closed(title, "127.0.0.1")
    assert sum(1 for _ in observed.series()) == before
    assert observed.value("store_requests_total", calling_ae="other") == 10_000
    assert observed.value("scp_associations") == 0


def test_an_outcome_is_counted_under_its_modality_and_reason(observed: Observed) -> None:
    observed.observer.operation_ended(Outcome("ct1", "echo", Reason.OK, duration=0.2))
    observed.observer.operation_ended(Outcome("ct1", "echo", Reason.CONNECT_REFUSED, duration=0.1))
    observed.observer.operation_ended(Outcome("mr1", "echo", Reason.OK, duration=0.3))
    assert observed.value("operations_total", operation="echo", modality="ct1") == 2
    assert observed.value("operation_failures_total", operation="echo", modality="ct1", reason="connect_refused") == 1
    assert observed.value("modality_up", modality="ct1") == 0
    assert observed.value("modality_up", modality="mr1") == 1
    assert observed.value("modality_last_success_timestamp_seconds", modality="mr1") > 1e9
    assert observed.value("modality_last_duration_seconds", modality="mr1", operation="echo") == 0.3
    assert observed.value("operation_duration_seconds_count", operation="echo") == 3


def test_an_operation_that_was_not_tried_takes_no_time(observed: Observed) -> None:
    observed.observer.operation_ended(Outcome("ct1", "echo", Reason.BREAKER_OPEN))
    assert observed.value("operations_total", operation="echo", modality="ct1") == 1
    assert observed.value("operation_duration_seconds_count", operation="echo") == 0
    observed.observer.breaker_changed("ct1", True)
    assert observed.value("breaker_open", modality="ct1") == 1


def test_a_store_is_counted_under_a_configured_calling_ae_title(observed: Observed) -> None:
    observed.observer.store_ended("CT1  ", 0x0000, 1_000, 0.01)
    observed.observer.store_ended("CT1", 0xB007, 1_000, 0.01)
    observed.observer.store_ended("CT1", 0xA700, 1_000, 0.01)
    assert observed.value("store_requests_total", calling_ae="CT1") == 3
    assert observed.value("store_received_bytes_total", calling_ae="CT1") == 3_000
    assert observed.value("store_failures_total", calling_ae="CT1", status="0xA700") == 1
    assert observed.value("modality_last_received_timestamp_seconds", modality="ct1") > 1e9


def test_silence_is_told_of_those_of_whom_something_is_expected(tmp_path: Path) -> None:
    observed = Observed(everything(tmp_path, CT1, MR1))
    assert observed.value("modality_quiet", modality="ct1") == 0
    assert observed.value("modality_expected_by_timestamp_seconds", modality="ct1") == 0
    observed.states.silence_judged("ct1", expected_by=1e9, quiet_since=1e9)
    assert observed.value("modality_quiet", modality="ct1") == 1
    assert observed.value("modality_expected_by_timestamp_seconds", modality="ct1") == 1e9
    assert not re.search(r'(quiet|expected_by_timestamp_seconds)\{modality="mr1"', observed.text())
    observed.configure(everything(tmp_path, MR1))
    observed.states.silence_judged("ct1", expected_by=1e9, quiet_since=1e9)
    assert "ct1" not in observed.text()


def test_up_is_not_a_number_before_the_first_outcome_and_absent_where_nobody_asks(tmp_path: Path) -> None:
    observed = Observed(Exposed((CT1, MR1), {"echo": frozenset({"ct1"})}, ("echo",)))
    assert math.isnan(observed.value("modality_up", modality="ct1"))
    assert 'asyncdicom_modality_up{modality="mr1"}' not in observed.text()


def test_a_modality_that_is_removed_takes_its_series_with_it(observed: Observed, tmp_path: Path) -> None:
    observed.observer.operation_ended(Outcome("mr1", "find", Reason.ABORTED))
    observed.observer.store_ended("MR1", 0xC123, 1, 0.1)
    observed.configure(everything(tmp_path, CT1))
    observed.observer.operation_ended(Outcome("mr1", "echo", Reason.OK))
    observed.observer.store_ended("MR1", 0, 1, 0.1)
    assert not re.search(r"mr1|MR1", observed.text())
    observed.configure(everything(tmp_path, CT1, MR1))
    assert observed.value("operations_total", operation="echo", modality="mr1") == 0


def test_a_reload_keeps_what_was_counted(observed: Observed, tmp_path: Path) -> None:
    observed.observer.operation_ended(Outcome("ct1", "echo", Reason.OK))
    observed.metrics.sweep_ended("echo", 1.5)
    for _ in range(3):
        observed.configure(everything(tmp_path, CT1, MR1))
    assert observed.value("operations_total", operation="echo", modality="ct1") == 1
    assert observed.value("sweep_duration_seconds", sweep="echo") == 1.5
    observed.configure(Exposed((CT1,), storage=True))
    observed.metrics.sweep_ended("echo", 1.5)
    assert "asyncdicom_sweep_duration_seconds{" not in observed.text()


def test_a_sweep_says_how_often_it_is_to_run_also_after_a_reload(observed: Observed) -> None:
    assert observed.value("sweep_interval_seconds", sweep="echo") == 30
    observed.configure(Exposed((CT1,), sweeps=("echo", "find"), every={"echo": 60.0, "find": 300.0}))
    assert observed.value("sweep_interval_seconds", sweep="echo") == 60
    observed.configure(Exposed((CT1,), sweeps=("find",), every={"find": 300.0}))
    assert 'asyncdicom_sweep_interval_seconds{sweep="echo"}' not in observed.text()


def test_a_large_fleet_has_no_series_for_failures_that_never_happened() -> None:
    fleet = tuple(Modality(f"m{index}", ae_title="X", host="h") for index in range(1_000))
    observed = Observed(Exposed(fleet, {"echo": frozenset(modality.name for modality in fleet)}))
    assert observed.text().count("asyncdicom_operation_failures_total{") == 0
    observed.observer.operation_ended(Outcome("m1", "echo", Reason.ABORTED))
    assert observed.text().count("asyncdicom_operation_failures_total{") == 1


def test_a_large_fleet_has_no_series_for_refusals_that_never_happened() -> None:
    observed = Observed(Exposed(tuple(Modality(f"m{n}", ae_title=f"AE{n}", host="h") for n in range(1_000)), storage=True))
    of = "asyncdicom_store_failures_total{"
    assert observed.text().count(of) == observed.text().count(of + 'calling_ae="other"') == 4
    observed.observer.store_ended("AE7", 0xA700, 1, 0.1)
    assert observed.value("store_failures_total", calling_ae="AE7", status="0xA700") == 1


def _large(count: int = 5_000) -> Observed:
    fleet = tuple(Modality(f"modality-{index}", ae_title=f"AE{index}", host="127.0.0.1") for index in range(count))
    observed = Observed(Exposed(fleet, {"echo": frozenset(modality.name for modality in fleet)}, ("echo",), storage=True))
    for modality in fleet:
        observed.observer.operation_ended(Outcome(modality.name, "echo", Reason.OK, duration=0.02))
    return observed


def test_rendering_a_large_fleet_leaves_nothing_for_a_full_collection_of_garbage() -> None:
    observed = _large()
    gc.collect()
    before = gc.get_stats()[2]["collections"]
    for _ in range(5):
        body, _content_type = observed.metrics.render()
    # In one, the event loop would stand still for as long as it takes to look at everything that the process holds.
    assert gc.get_stats()[2]["collections"] == before
    assert body.count(b"asyncdicom_modality_up{") == 5_000


def test_names_of_any_kind_are_rendered_so_that_they_are_read_back(tmp_path: Path) -> None:
    odd = Modality('a "b" \\ c\nd ü 100 %s', ae_title="ODD", host="127.0.0.1")
    observed = Observed(everything(tmp_path, odd))
    observed.observer.operation_ended(Outcome(odd.name, "echo", Reason.OK, duration=0.02))
    assert observed.value("operations_total", operation="echo", modality=odd.name) == 1
    body, _ = observed.metrics.render(_OPENMETRICS)
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["asyncdicom_operations"].type == "counter"
    assert {"operation": "echo", "modality": odd.name} in [
        sample.labels for sample in families["asyncdicom_operations"].samples
    ]


def test_every_reason_of_failure_is_there_from_the_start(observed: Observed) -> None:
    reasons = {found["reason"] for name, found, _ in observed.series() if name == "asyncdicom_operation_failures_total"}
    assert reasons == {str(reason) for reason in FAILURE_REASONS}


async def test_the_lag_of_the_loop_is_sampled(observed: Observed) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(observed.metrics.sample_loop_lag, 0.01)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(observed.value, "loop_lag_seconds_count") >= 3


def test_events_are_counted_by_target(observed: Observed) -> None:
    observed.metrics.event_delivered("pipeline")
    observed.metrics.event_failed("pipeline")
    observed.metrics.study_completed()
    observed.metrics.outbox(2, 123.0)
    assert observed.value("events_delivered_total", target="pipeline") == 1
    assert observed.value("event_failures_total", target="pipeline") == 1
    assert observed.value("studies_completed_total") == 1
    assert (observed.value("outbox_pending"), observed.value("outbox_oldest_timestamp_seconds")) == (2, 123)
