"""Metric families of thousands of series, and the filter that every rendering goes through.

The families of the client keep a :class:`Sample` and a dictionary for each series until all is rendered. With the 60,000 series
of a fleet of 5,000 these outlive the young generations of the garbage collector, and a full collection follows, in which the
event loop stands still for a tenth of a second. The families here keep one tuple for each series, which the collector
does not track, and make the samples one by one while they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample


class _Family(Metric):
    def __init__(self, name: str, documentation: str, kind: str, suffix: str, labels: Sequence[str]) -> None:
        super().__init__(name, documentation, kind)
        self._sample_name = f"{name}{suffix}"
        self._labels = tuple(labels)
        self._rows: list[tuple[str | float, ...]] = []
        # The renderers read it once, from its beginning to its end.
        self.samples = cast(list[Sample], _Once(self._made))

    def add_metric(self, labels: Sequence[str], value: float) -> None:
        """Add a series.

        :param labels: the values of its labels, in the order of their names
        """
        self._rows.append((*labels, value))

    def _made(self) -> Iterator[Sample]:
        for *values, value in self._rows:
            yield Sample(self._sample_name, dict(zip(self._labels, cast(list[str], values), strict=True)), cast(float, value))


class _Once:
    def __init__(self, made: Callable[[], Iterator[Sample]]) -> None:
        self._made = made

    def __iter__(self) -> Iterator[Sample]:
        return self._made()


class GaugeMetricFamily(_Family):
    """A family of gauges."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        super().__init__(name, documentation, "gauge", "", labels)


class CounterMetricFamily(_Family):
    """A family of counters.

    :param name: without ``_total``, which its series have at their end
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        super().__init__(name, documentation, "counter", "_total", labels)


class Rendered(Collector):
    """A registry as it is shown: without the ``_created`` series, which double the counters and which Prometheus does not need,
    and without exemplars that name a modality which has left the configuration.

    :param registry: what is shown
    :param named: whether a modality of this name is in the configuration
    """

    def __init__(self, registry: Collector, named: Callable[[str], bool]) -> None:
        self._registry = registry
        self._named = named

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        for metric in self._registry.collect():
            # Some collectors yield the same object each time: it stays as it is.
            shown = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            shown.samples = cast(list[Sample], self._shown(metric.samples))
            yield shown

    def _shown(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            if sample.name.endswith("_created"):
                continue
            if sample.exemplar is not None and not self._named(sample.exemplar.labels.get("modality", "")):
                yield sample._replace(exemplar=None)
            else:
                yield sample
