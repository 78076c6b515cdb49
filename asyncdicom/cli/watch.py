"""``asyncdicom echo --watch`` on a terminal: a table that stays, and changes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from asyncdicom.cli.ending import OK
from asyncdicom.cli.rendering import Column, explanation, milliseconds, reason_style, table_of, tally
from asyncdicom.cli.targets import Asked
from asyncdicom.modality import Modality
from asyncdicom.outcome import Outcome

_REDRAWS_A_SECOND = 4
# One block for each of the last answers, higher where it took longer.
_BARS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 24


@dataclass
class _Line:
    """What is known of one target.

    :ivar since: when its present result began, on the monotonic clock
    """

    modality: Modality
    last: Outcome | None = None
    since: float = 0.0
    asked: int = 0
    failed: int = 0
    durations: list[float | None] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        if self.last is None or self.last.reason is not outcome.reason:
            self.since = time.monotonic()
        self.last = outcome
        self.asked += 1
        self.failed += not outcome.ok
        self.durations = [*self.durations, outcome.duration if outcome.ok else None][-_REMEMBERED:]

    @property
    def history(self) -> str:
        longest = max((duration for duration in self.durations if duration is not None), default=0.0) or 1.0
        return "".join(
            "✗" if duration is None else _BARS[min(7, int(duration / longest * 7.99))] for duration in self.durations
        )


_COLUMNS: tuple[Column[_Line], ...] = (
    Column("modality", lambda line: line.modality.name, fit="whole"),
    Column("address", lambda line: str(line.modality), lambda _: "dim", fit="whole"),
    Column(
        "result",
        lambda line: str(line.last.reason) if line.last else "asking ...",
        lambda line: reason_style(line.last) if line.last else "dim",
        fit="whole",
    ),
    Column("since", lambda line: _ago(line.since) if line.last else "", right=True, fit="whole"),
    Column("time", lambda line: milliseconds(line.last.duration) if line.last else "", right=True, fit="whole"),
    Column("failed", lambda line: f"{line.failed} of {line.asked}" if line.failed else "", right=True, fit="whole"),
    Column("last answers", lambda line: line.history, lambda _: "cyan", fit="whole"),
    Column("why", lambda line: explanation(line.last) if line.last else "", fit="cut"),
)


async def watch(asked: Asked, every: float) -> int:
    """Ask again and again until cancelled, and show what is.

    :param every: seconds from the start of a round to that of the next
    """
    console = Console()
    lines = {modality.name: _Line(modality) for modality in asked.targets}
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        async with asked.fleet, anyio.create_task_group() as tasks:
            tasks.start_soon(_redraw, live, console, lines)
            while True:
                due = anyio.current_time() + every
                async for outcome in asked.fleet.echo(asked.targets):
                    lines[outcome.modality].add(outcome)
                await anyio.sleep_until(due)
    return OK


async def _redraw(live: Live, console: Console, lines: dict[str, _Line]) -> None:
    while True:
        live.update(_drawn(console, lines), refresh=True)
        await anyio.sleep(1 / _REDRAWS_A_SECOND)


def _drawn(console: Console, lines: dict[str, _Line]) -> Group:
    answers = [line.last.reason for line in lines.values() if line.last is not None]
    failed = [reason for reason in answers if reason != "ok"]
    title = Text.assemble(
        (f"{len(answers) - len(failed)} of {len(lines)} answer", "bold"),
        (f"; {tally(failed)}" if failed else "", "red"),
        ("   Ctrl-C ends", "dim"),
    )
    # What needs a look comes first; what does not fit is counted.
    ordered = sorted(lines.values(), key=lambda line: (line.last is None or line.last.ok, line.last is None))
    room = max(1, console.size.height - 6)
    shown = ordered[:room]
    rest = Text(f"... and {len(ordered) - room} more", "dim") if len(ordered) > room else Text("")
    return Group(title, table_of(_COLUMNS, shown), rest)


def _ago(moment: float) -> str:
    seconds = int(time.monotonic() - moment)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60} min"
