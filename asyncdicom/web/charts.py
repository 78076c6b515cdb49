"""Outcomes as pictures: few elements each, however many samples, because a page has a hundred of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncdicom.monitor.state import KEPT_OUTCOMES, Sample
from asyncdicom.outcome import OPERATIONS, PHASES, Phases, Reason
from asyncdicom.web import words
from asyncdicom.web.markup import Markup, element, text

_STEP, _HEIGHT = 4, 22
_WIDTH = KEPT_OUTCOMES * _STEP
# Of the line of latencies, so that its points are whole numbers.
_TALL = 1000
_BAR = 1000
_OK, _SKIPPED = Reason.OK, Reason.BREAKER_OPEN
_OPERATIONS = {operation: str(position) for position, operation in enumerate(OPERATIONS)}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_REASONS = {reason: _DIGITS[position] for position, reason in enumerate(words.REASONS)}


def strip(samples: Sequence[Sample], of: str, class_: str = "strip") -> Markup:
    """The last outcomes as marks, newest at the right: low and green what succeeded, high and red what failed.

    A run of equal outcomes is one line, which the style dashes into marks. What and when each was lies in an attribute, from
    which the script tells it: on hover, on touch, and by the arrow keys.

    :param of: the name of the modality
    """
    lines = {"ok": "", "skipped": "", "bad": ""}
    first = KEPT_OUTCOMES - len(samples)
    start = 0
    for end in range(1, len(samples) + 1):
        kind = _kind(samples[start])
        if end == len(samples) or _kind(samples[end]) != kind:
            lines[kind] += f"M{(first + start) * _STEP} 11h{(end - start) * _STEP - 1}"
            start = end
    failed = sum(sample.reason is not _OK for sample in samples)
    paths = "".join(f'<path d="{line}" class="{kind}"/>' for kind, line in lines.items() if line)
    # Written out: every row of a fleet has one, and calling for each element costs more than all the rest of it.
    return Markup(
        f'<svg class="{class_}" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" tabindex="0"'
        f' aria-label="{text(of)}: last {len(samples)} outcomes, {failed} failed"'
        f' data-samples="{packed(samples)}">{paths}</svg>'
    )


def _kind(sample: Sample) -> str:
    if sample.reason is _OK:
        return "ok"
    return "skipped" if sample.reason is _SKIPPED else "bad"


def packed(samples: Sequence[Sample]) -> str:
    """Samples for the script, each in a few characters.

    The first number is when the first one was, in seconds since the epoch; then for each its operation and its reason
    (positions in the page's lists, a digit each, base 36), the seconds since the one before, and after a point its tenths of
    a millisecond. Numbers are in base 16.
    """
    if not samples:
        return ""
    before = int(samples[0].at)
    parts = [f"{before:x}"]
    for sample in samples:
        reason, at = sample.reason, int(sample.at)
        # Most are this one, and asking a dictionary of an enumeration costs more than all the rest.
        code = "0" if reason is _OK else _REASONS[reason]
        # A clock that was put back makes no gap.
        gap = at - before if at > before else 0
        parts.append(f"{_OPERATIONS[sample.operation]}{code}{gap:x}.{int(sample.duration * 10_000):x}")
        before += gap
    return " ".join(parts)


def sparkline(samples: Sequence[Sample], class_: str = "spark", *, slots: int = KEPT_OUTCOMES) -> Markup | None:
    """How long the successes took, as a line that a failure interrupts; None when there are less than two.

    It rises from zero to the slowest of them.

    :param slots: for how many outcomes there is room at least, so that few of them fill a small picture
    """
    took = [sample.duration for sample in samples if sample.reason is _OK]
    if len(took) < 2 or (slowest := max(took)) <= 0:
        return None
    scale = _TALL / slowest
    parts: list[str] = []
    at = (KEPT_OUTCOMES - len(samples)) * _STEP + _STEP // 2
    broken = True
    for sample in samples:
        if sample.reason is not _OK:
            broken = True
        elif broken:
            # A line needs two ends: a success alone between failures is a point.
            parts.append(f"M{at} {_TALL - int(sample.duration * scale)}h0L")
            broken = False
        else:
            parts.append(f"{at} {_TALL - int(sample.duration * scale)} ")
        at += _STEP
    width = max(slots, len(samples)) * _STEP
    line = "".join(parts).replace("LM", "M").rstrip("L ")
    return Markup(
        f'<svg class="{class_}" viewBox="{_WIDTH - width} -50 {width} {_TALL + 100}" preserveAspectRatio="none"'
        ' aria-hidden="true">'
        f'<path d="{line}"/></svg>'
    )


def phases_bar(phases: Phases) -> Markup | None:
    """The seconds of each phase as one bar of parts, with a legend that has the numbers; None when none was reached."""
    reached = [(name, seconds) for name in PHASES if (seconds := getattr(phases, name)) is not None]
    total = sum(seconds for _, seconds in reached)
    if not reached:
        return None
    legend = element(
        "ul",
        [
            element(
                "li",
                element("span", class_=f"swatch p-{name}", aria_hidden="true"),
                element("span", name),
                element("b", words.milliseconds(seconds), class_="num"),
            )
            for name, seconds in reached
        ],
        class_="phases",
    )
    if total <= 0:
        return legend
    return Markup(_bar(reached, total) + legend)


def _bar(parts: Iterable[tuple[str, float]], total: float) -> Markup:
    at = 0.0
    shapes = []
    for name, seconds in parts:
        width = seconds / total * _BAR
        shapes.append(element("rect", x=f"{at:.1f}", y=0, width=f"{width:.1f}", height=10, class_=f"p-{name}"))
        at += width
    return element(
        "svg",
        shapes,
        viewBox=f"0 0 {_BAR} 10",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
        class_="stack",
    )
