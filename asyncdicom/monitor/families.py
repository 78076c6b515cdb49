"""Metric families of thousands of series, and the filter that all others go through when they are rendered.

The client keeps a sample and a dictionary for each series until all is rendered, and looks at each label of each. With the
40,000 series of a fleet of 5,000 that is half a second of a processor, and so many objects that a full collection of garbage
follows, in which the event loop stands still for a tenth of a second. The families here write the line of a series at once: a
string, which the collector does not look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family:
    """Series of one name.

    :param name: of its series
    :param documentation: what an operator is to know of it: one line, without quotes and backslashes
    :param labels: their names
    """

    kind = ""
    # What the name of a series has and that of its family has not, in OpenMetrics.
    suffix = ""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._name = name
        self._documentation = documentation
        pairs = ",".join(f'{label}="%s"' for label in labels)
        self._line = f"{name}{self.suffix}{{{pairs}}} %s\n"
        self._lines: list[str] = []

    def add_metric(self, labels: Sequence[str], value: float) -> None:
        """Add a series.

        :param labels: the values of its labels, in the order of their names
        """
        self._lines.append(self._line % (*(label.translate(_ESCAPED) for label in labels), _written(value)))

    def rendered(self, *, openmetrics: bool) -> str:
        """Return every line of it.

        :param openmetrics: as OpenMetrics, else in the text format
        """
        name = self._name if openmetrics else f"{self._name}{self.suffix}"
        return "".join((f"# HELP {name} {self._documentation}\n# TYPE {name} {self.kind}\n", *self._lines))


class GaugeMetricFamily(Family):
    """A family of gauges."""

    kind = "gauge"


class CounterMetricFamily(Family):
    """A family of counters; its name is without the ``_total`` that its series have at their end."""

    kind = "counter"
    suffix = "_total"


def _written(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


class Shown(Collector):
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
            # The renderers read them once, from the first to the last.
            shown.samples = cast(list[Sample], self._samples(metric.samples))
            yield shown

    def _samples(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            if sample.name.endswith("_created"):
                continue
            if sample.exemplar is not None and not self._named(sample.exemplar.labels.get("modality", "")):
                yield sample._replace(exemplar=None)
            else:
                yield sample
