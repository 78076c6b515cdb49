"""Metrics as text, quickly where there are thousands of series.

The client library makes an object of each sample and sorts its labels anew every time: half a second for five thousand
modalities, in which the interpreter does little else. The families here keep labels and values as they are given, and become
text without that; to whoever iterates over them they are families as any other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import Literal

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

_NOT_FINITE = {inf: "+Inf", -inf: "-Inf"}
_END_OF_OPENMETRICS = b"# EOF\n"


class Family(Metric):
    """A family of gauges or counters with many series.

    :param name: of the family; the samples of a counter have ``_total`` after it
    :param words: what it is, for a person
    :param labels: their names, in the order in which values are given
    """

    def __init__(self, kind: Literal["gauge", "counter"], name: str, words: str, *, labels: Sequence[str]) -> None:
        super().__init__(name, words, kind)
        self._sample_name = f"{name}_total" if kind == "counter" else name
        self._labels = tuple(labels)
        self._values: list[Sequence[str]] = []
        self._numbers: list[float] = []
        self._text: str | None = None

    def add_metric(self, values: Sequence[str], value: float) -> None:
        """Add a series.

        :param values: of the labels
        """
        # A tuple of texts is nothing that a collection of garbage has to look at; thousands of lists would call for a full one.
        self._values.append(tuple(values))
        self._numbers.append(value)
        self._text = None

    # The base class gives every family an empty list of its own.
    @property
    def samples(self) -> list[Sample]:
        """The samples as the client library has them."""
        name, labels = self._sample_name, self._labels
        series = zip(self._values, self._numbers, strict=True)
        return [Sample(name, dict(zip(labels, values, strict=True)), value) for values, value in series]

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        if samples:
            raise TypeError("series are added by add_metric")

    def encode(self, openmetrics: bool) -> bytes:
        """The text of the family.

        :param openmetrics: as OpenMetrics, in which the name of a counter is that without ``_total``
        """
        named = self.name if openmetrics else self._sample_name
        words = self.documentation.replace("\\", "\\\\").replace("\n", "\\n")
        if openmetrics:
            words = words.replace('"', '\\"')
        head = f"# HELP {named} {words}\n# TYPE {named} {self.type}\n"
        return (head + self._lines()).encode()

    def _lines(self) -> str:
        if self._text is not None:
            return self._text
        # By name, as both formats want them.
        order = sorted(range(len(self._labels)), key=lambda position: self._labels[position])
        labels = ",".join(f'{self._labels[position]}="{{{position}}}"' for position in order)
        where = f"{{{{{labels}}}}}" if labels else ""
        line = f"{self._sample_name}{where} {{{len(order)}}}\n".format
        series = list(zip(self._values, map(_number, self._numbers), strict=True))
        lines = "".join([line(*values, number) for values, number in series])
        if "\\" in lines or lines.count('"') != 2 * len(order) * len(series) or lines.count("\n") != len(series):
            # Hardly any name has something to escape, and looking at the whole is quicker than at each.
            lines = "".join([line(*map(_escaped, values), number) for values, number in series])
        self._text = lines
        return lines


def _number(value: float) -> str:
    value = float(value)
    # Shorter ways of writing large numbers cost more than they save.
    return repr(value) if isfinite(value) else _NOT_FINITE.get(value, "NaN")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Count:
    """One counter of many. Counting is for any thread."""

    __slots__ = ("_all", "value")

    def __init__(self, counters: Counters) -> None:
        self._all = counters
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count.

        :param amount: 0 or more
        """
        counters = self._all
        with counters._lock:
            self.value += amount
            counters._changes += 1


class Counters(Collector):
    """Counters that differ by their labels: as the client library's, in a tenth of the memory for each.

    :param name: without ``_total``
    :param words: what is counted, for a person
    :param labels: their names; without any it is one counter
    :param registry: where to; None for none
    """

    def __init__(self, name: str, words: str, labels: Sequence[str] = (), registry: CollectorRegistry | None = None) -> None:
        self._name, self._words, self._labels = name, words, tuple(labels)
        self._lock = threading.Lock()
        self._changes = 0
        # What was collected last, and after which change: who only looks on has thousands that stand still.
        self._collected: tuple[int, Family] | None = None
        self._counts: dict[tuple[str, ...], Count] = {}
        if not labels:
            self.labels()
        if registry is not None:
            registry.register(self)

    def labels(self, *values: str) -> Count:
        """The counter of these labels, made when it is not there."""
        known = self._counts.get(values)
        if known is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has {len(self._labels)} labels, and not {len(values)}")
            with self._lock:
                known = self._counts.setdefault(values, Count(self))
                self._changes += 1
        return known

    def inc(self, amount: float = 1.0) -> None:
        """Count, where there are no labels."""
        self.labels().inc(amount)

    def remove(self, *values: str) -> None:
        """Forget the counter of these labels."""
        with self._lock:
            del self._counts[values]
            self._changes += 1

    def remove_by_label(self, label: str, value: str) -> None:
        """Forget all counters that have a label of this value."""
        position = self._labels.index(label)
        with self._lock:
            self._counts = {values: count for values, count in self._counts.items() if values[position] != value}
            self._changes += 1

    def describe(self) -> Iterable[Metric]:
        """Name the family, without its series."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """Return the family."""
        changes = self._changes
        if self._collected is None or self._collected[0] != changes:
            family = self._family()
            # A copy is taken at once: counting goes on meanwhile.
            for values, count in self._counts.copy().items():
                family.add_metric(values, count.value)
            self._collected = changes, family
        return [self._collected[1]]

    def _family(self) -> Family:
        return Family("counter", self._name, self._words, labels=self._labels)


class _Rest(Collector):
    """The metrics that the client library encodes."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        return self._metrics


def encode(collector: Collector, accept: str) -> tuple[bytes, str]:
    """Render every metric.

    :param accept: the Accept header: OpenMetrics for who asks for it, else the text format
    :return: the body and its content type
    """
    encoder, content_type = choose_encoder(accept)
    openmetrics = content_type.startswith("application/openmetrics-text")
    families: list[Family] = []
    rest: list[Metric] = []
    for metric in collector.collect():
        if isinstance(metric, Family):
            families.append(metric)
        else:
            rest.append(metric)
    body = encoder(_Rest(rest))
    parts = [body.removesuffix(_END_OF_OPENMETRICS) if openmetrics else body, *(one.encode(openmetrics) for one in families)]
    if openmetrics:
        parts.append(_END_OF_OPENMETRICS)
    return b"".join(parts), content_type
