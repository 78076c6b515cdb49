"""Families that are encoded by us read as those of the client library do, to the byte."""

from __future__ import annotations

import math
import threading

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from asyncdicom.monitor.exposition import Counters, Family, encode

ACCEPT = ["", "application/openmetrics-text; version=1.0.0", "text/plain; version=1.0.0; escaping=allow-utf-8"]
NUMBERS = [0, 1, 12.5, -3.0, 1e-5, 0.1, 999_999.0, -1e6, math.inf, -math.inf, math.nan, True]
# The library writes these in another way, of the same value.
LARGE = [1e6, 1_700_000_000.25, 1_700_000_000.123456, 1e15, 1e22]
NAMES = ["ct1", "mr 1", 'a "quoted" one', "back\\slash", "new\nline", "Röntgen {1}", "%s", ""]


class Given(Collector):
    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return list(self._metrics)


@pytest.mark.parametrize("accept", ACCEPT)
@pytest.mark.parametrize("names", [NAMES, NAMES[:2], []], ids=["odd", "plain", "none"])
@pytest.mark.parametrize("kind", ["counter", "gauge"])
@pytest.mark.parametrize("labels", [["modality"], ["operation", "modality"], ["zone", "operation", "modality"]])
def test_a_family_reads_as_the_librarys(accept: str, names: list[str], kind: str, labels: list[str]) -> None:
    words = 'What it "is":\nin two lines, with a \\.'
    theirs = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)("asyncdicom_things", words, labels=labels)
    ours = Family(kind, "asyncdicom_things", words, labels=labels)  # type: ignore[arg-type]
    for name in names:
        for position, number in enumerate(NUMBERS):
            values = [name, *(f"{label}{position}" for label in labels[1:])]
            theirs.add_metric(values, number)
            ours.add_metric(values, number)
    encoder, content_type = choose_encoder(accept)
    assert encode(Given(ours), accept) == (encoder(Given(theirs)), content_type)
    assert str(ours.samples) == str(theirs.samples)


@pytest.mark.parametrize("accept", ACCEPT)
def test_both_kinds_of_families_stand_in_one_text(accept: str) -> None:
    ours = Family("gauge", "asyncdicom_up", "Up.", labels=["modality"])
    ours.add_metric(["ct1"], 1)
    theirs = GaugeMetricFamily("asyncdicom_free", "Free.", value=3)
    encoder, _ = choose_encoder(accept)
    assert encode(Given(ours, theirs), accept)[0] == encoder(Given(theirs, ours))


def test_large_numbers_are_read_as_what_they_are() -> None:
    family = Family("gauge", "asyncdicom_things", "Things.", labels=["size"])
    for number in LARGE:
        family.add_metric([repr(number)], number)
    (read,) = text_string_to_metric_families(encode(Given(family), "")[0].decode())
    assert [(sample.labels["size"], sample.value) for sample in read.samples] == [(repr(value), value) for value in LARGE]


def test_counters_count_and_forget() -> None:
    registry = CollectorRegistry()
    counters = Counters("asyncdicom_stores", "Stores.", ("calling_ae", "status"), registry)
    counters.labels("CT1", "0x0000").inc()
    counters.labels("CT1", "0x0000").inc(2)
    counters.labels("CT1", "0xA700")
    counters.labels("MR1", "0xA700").inc()
    assert registry.get_sample_value("asyncdicom_stores_total", {"calling_ae": "CT1", "status": "0x0000"}) == 3
    counters.remove_by_label("calling_ae", "CT1")
    assert [values["calling_ae"] for _, values, *_ in next(iter(counters.collect())).samples] == ["MR1"]
    counters.remove("MR1", "0xA700")
    assert next(iter(counters.collect())).samples == []
    with pytest.raises(ValueError, match="2 labels"):
        counters.labels("CT1")
    with pytest.raises(ValueError, match="Duplicated"):
        Counters("asyncdicom_stores", "Stores.", registry=registry)


def test_a_counter_without_labels_is_there_from_the_start() -> None:
    counter = Counters("asyncdicom_studies", "Studies.")
    assert b"\nasyncdicom_studies_total 0.0\n" in encode(counter, "")[0]
    counter.inc()
    assert b"\nasyncdicom_studies_total 1.0\n" in encode(counter, "")[0]


def test_what_stands_still_is_rendered_once_and_what_changed_anew() -> None:
    counters = Counters("asyncdicom_stores", "Stores.", ("calling_ae",))
    counters.labels("CT1").inc()
    (before,) = counters.collect()
    assert next(iter(counters.collect())) is before
    for change, line in (
        (lambda: counters.labels("CT1").inc(), b'{calling_ae="CT1"} 2.0\n'),
        (lambda: counters.labels("MR1"), b'{calling_ae="MR1"} 0.0\n'),
    ):
        assert line not in encode(counters, "")[0]
        change()
        assert line in encode(counters, "")[0]
    counters.remove("CT1")
    assert b"CT1" not in encode(counters, "")[0]


def test_threads_lose_no_count() -> None:
    count = Counters("asyncdicom_things", "Things.", ("kind",)).labels("a")

    def work() -> None:
        for _ in range(5_000):
            count.inc()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.value == 20_000
