"""One result, four forms: JSON and CSV for programs, a table for people, plain lines for what lies in between."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from asyncdicom.cli.ending import refuse
from asyncdicom.cli.options import Form
from asyncdicom.cli.output import Output
from asyncdicom.outcome import Outcome

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["json", "csv", "table", "plain"]
Item = TypeVar("Item")

# Columns of a table that goes to no terminal.
_WIDTH = 120

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def kind_of(form: Form) -> Kind:
    """Which form results get."""
    if form.json and form.csv:
        refuse("--json and --csv: choose one")
    if form.json:
        return "json"
    if form.csv:
        return "csv"
    return "table" if os.isatty(1) else "plain"


def clean(text: object) -> str:
    """Text for a person's terminal: nothing in it can move the cursor, ring, or break the line."""
    text = str(text)
    return text if text.isprintable() else "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def as_json(record: Mapping[str, Any]) -> str:
    """A record as one line of JSON."""
    return _compact(record)


def csv_line(cells: Iterable[object]) -> str:
    """Cells as one line of CSV (RFC 4180), without its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow("" if cell is None else cell for cell in cells)
    return text.getvalue()


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column of a table.

    :ivar cell: what stands in it, as text
    :ivar style: how it looks on a terminal
    :ivar fit: what becomes of text that is wider than there is room: wrapped, cut, or given the room all the same
    """

    title: str
    cell: Callable[[Item], str]
    style: Callable[[Item], str] = lambda _: ""
    right: bool = False
    fit: Literal["fold", "cut", "whole"] = "fold"


@dataclass(frozen=True)
class View(Generic[Item]):
    """How items of one kind are shown.

    :ivar json: an item as a line of JSON
    :ivar header: the header of the CSV form
    :ivar record: an item as a row of the CSV form
    :ivar columns: the table for people
    """

    json: Callable[[Item], str]
    header: Sequence[str]
    record: Callable[[Item], Iterable[object]]
    columns: Sequence[Column[Item]]


class Rows(Generic[Item]):
    """Writes items in one form as they come; a table when they are all there.

    :param view: how items are shown
    """

    def __init__(self, output: Output, kind: Kind, view: View[Item]) -> None:
        self._output = output
        self._view = view
        self._items: list[Item] = []
        self.kind = kind

    async def begin(self) -> None:
        """Write the header, where there is one."""
        if self.kind == "csv":
            await self._output.line(csv_line(self._view.header))

    async def add(self, item: Item) -> None:
        """Write an item."""
        match self.kind:
            case "json":
                await self._output.line(self._view.json(item))
            case "csv":
                await self._output.line(csv_line(self._view.record(item)))
            case "plain":
                await self._output.line("\t".join(clean(column.cell(item)) for column in self._view.columns))
            case "table":
                self._items.append(item)

    def end(self, order: Callable[[Item], Any] | None = None) -> None:
        """Write the table.

        :param order: sort its rows by this
        """
        if self._items:
            items = sorted(self._items, key=order) if order is not None else self._items
            self._output.put(drawn(table_of(self._view.columns, items)))
        self._items = []


def table_of(columns: Sequence[Column[Item]], items: Iterable[Item]) -> Table:
    """Draw items as a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column.fit == "whole",
        )
    for item in items:
        cells = [Text(clean(column.cell(item)), column.style(item)) for column in columns]
        for column, cell in zip(columns, cells, strict=True):
            if column.fit == "cut":
                # Said of the cell and not of the column, which could then not be narrower than its text.
                cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def drawn(what: Any) -> str:
    """Render something of rich's for standard output, without the end of its last line."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if os.isatty(1) else _WIDTH)
    with console.capture() as captured:
        console.print(what)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


# -- outcomes -------------------------------------------------------------------------------------------------------------

_PHASES = ("resolve", "connect", "tls", "associate", "operation", "release")
OUTCOME_HEADER = (
    "modality", "ae_title", "host", "port", "ok", "reason", "status", "duration_ms",
    *(f"{phase}_ms" for phase in _PHASES),
    "implementation_class_uid", "implementation_version", "rejected_result", "rejected_source", "rejected_reason",
)  # fmt: skip


def outcome_record(outcome: Outcome) -> list[object]:
    """An outcome as a row under :data:`OUTCOME_HEADER`."""
    fields = outcome.as_json()
    nested = [*fields.pop("phases_ms").values(), *fields.pop("peer").values(), *fields.pop("rejected").values()]
    fields["ok"] = "true" if outcome.ok else "false"
    return [*fields.values(), *nested]


def address_of(outcome: Outcome) -> str:
    """Where a target is, as ``AET@host:port``."""
    host = f"[{outcome.host}]" if ":" in outcome.host else outcome.host
    return f"{outcome.ae_title}@{host}:{outcome.port}"


def reason_style(outcome: Outcome) -> str:
    """How a reason looks."""
    return "green" if outcome.ok else "yellow" if outcome.reason in ("cancelled", "breaker_open") else "bold red"


def explanation(outcome: Outcome) -> str:
    """What happened and what to look at next; nothing after a success without a word."""
    # Where it happened stands beside it already.
    detail = outcome.detail.removeprefix(f"{address_of(outcome)}: ")
    return "; ".join(text for text in (detail, outcome.remedy) if text)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with three digits that count."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def failure_line(outcome: Outcome) -> str:
    """A failure in one line, for standard error."""
    who = outcome.modality if "@" in outcome.modality else f"{outcome.modality} ({address_of(outcome)})"
    words = explanation(outcome)
    return clean(f"{who}: {outcome.reason}" + (f": {words}" if words else ""))


def tally(reasons: Iterable[str]) -> str:
    """How often each reason came, most often first: ``2 connect_refused, 1 tls_failed``."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it stands in lines and summaries: the fields of ``echo --json``, and what happened in words."""
    return {**outcome.as_json(), "operation": outcome.operation, "attempts": outcome.attempts, "detail": outcome.detail}
