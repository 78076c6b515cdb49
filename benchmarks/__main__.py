"""``python -m benchmarks [--runs N] [--json FILE] [NAME ...]``: run the rows whose names begin so, and print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Comparison

_SUBJECTS = ("benchmarks.echo", "benchmarks.store")


def main() -> int:
    """Run, and print; 0 when every bar is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="pairs that count, after one that does not")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("names", nargs="*", help="bars, such as P5; default all")
    arguments = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    done: list[Comparison] = []
    for subject in _SUBJECTS:
        with importlib.import_module(subject).comparisons() as rows:
            for row in rows:
                if arguments.names and not any(row.name.startswith(name) for name in arguments.names):
                    continue
                with console.status(f"{row.name}: {row.what} against {row.peer}"):
                    row.run(arguments.runs)
                done.append(row)
    console.print(_table(done))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row.as_json() for row in done], indent=2) + "\n")
    return 0 if all(row.is_met for row in done) else 1


def _table(rows: list[Comparison]) -> Table:
    table = Table(
        box=box.SIMPLE, title=f"asyncdicom against its peers ({platform.machine()}, Python {platform.python_version()})"
    )
    for heading in ("bar", "measured", "against", "ours", "theirs", "ratio", "min", "max", "wanted", "met", "setting"):
        table.add_column(heading, justify="right" if heading in ("ours", "theirs", "ratio", "min", "max", "wanted") else "left")
    for row in rows:
        table.add_row(
            row.name,
            row.what,
            row.peer,
            f"{statistics.median(ours for ours, _ in row.pairs):,.0f}",
            f"{statistics.median(theirs for _, theirs in row.pairs):,.0f}",
            f"{statistics.median(row.ratios):.2f}",
            f"{min(row.ratios):.2f}",
            f"{max(row.ratios):.2f}",
            f"{row.bar:g}",
            "yes" if row.is_met else "no",
            row.setting,
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
