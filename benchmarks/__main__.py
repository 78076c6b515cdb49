"""``python -m benchmarks [--runs N] [--json FILE] [--profile] [NAME ...]``: measure rows, and print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from asyncdicom.testing.sockets import allow_descriptors
from benchmarks.comparison import Figure, Result, Row
from benchmarks.processes import Failed, memory_folder
from benchmarks.setting import PROFILE_SUFFIXES, Setting

_SUBJECTS = ("store", "echo", "sweep", "find", "idle", "large", "start_up", "send", "index")
_WIDTH = 180
# Instances to be sent, and an archive of as many.
_MEMORY = 3 << 30
_DESCRIPTORS = 4096


def main() -> int:
    """Run, and print.

    :return: 0 when every bar that could be measured is met, 1 when one is not or a side failed
    """
    arguments = _arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    # However it is ended: what was started ends, and folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A thousand associations are held by this process; those that it starts inherit what it may.
    allow_descriptors(_DESCRIPTORS)
    results: list[Result] = []
    with _setting(arguments) as setting:
        for result in _results(setting, arguments.names, arguments.runs, console):
            results.append(result)
            if arguments.json is not None:
                # After every row: a run of an hour that ends early has told what it knew.
                arguments.json.write_text(json.dumps([one.as_json() for one in results], indent=2) + "\n")
    if not results:
        console.print(f"no row is named {' or '.join(arguments.names)}")
        return 2
    console.print(_table(results, profiled=arguments.profile))
    for result in results:
        if not result.is_measured:
            console.print(f"{result.row.name} is not measured: {result.failure or result.missing}", markup=False)
    return 0 if all(result.is_met is not False and not result.failure for result in results) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="turns that count; most trials have one before that does not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, too")
    parser.add_argument("--profile", action="store_true", help="record our receivers with py-spy, beside the JSON")
    parser.add_argument("--profile-format", choices=sorted(PROFILE_SUFFIXES), default="flamegraph", help="default: flamegraph")
    parser.add_argument("--large", type=int, default=2_000_000_000, metavar="BYTES", help="size of the large instance (P11)")
    parser.add_argument("--index", type=int, default=100_000, metavar="ROWS", help="instances of the grown index (P15)")
    parser.add_argument("names", nargs="*", metavar="NAME", help='bars, such as P5 or "P1 small"; default all')
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: write 1 or more")
    if not 2 <= arguments.large < 1 << 32 or arguments.large % 2:
        parser.error(f"--large {arguments.large}: write an even number of bytes below 4 GiB (PS3.5 section 7.1.1)")
    if arguments.index < 1:
        parser.error(f"--index {arguments.index}: write 1 or more")
    if arguments.profile and arguments.json is None:
        parser.error("--profile: profiles lie beside the JSON, so write --json FILE, too")
    return arguments


@contextmanager
def _setting(arguments: argparse.Namespace) -> Iterator[Setting]:
    with memory_folder(_MEMORY) as memory, tempfile.TemporaryDirectory(prefix="asyncdicom-bench-") as disk:
        stem = arguments.json.with_suffix("") if arguments.profile else None
        yield Setting(memory, Path(disk), arguments.large, arguments.index, stem, arguments.profile_format)


def _results(setting: Setting, names: list[str], runs: int, console: Console) -> Iterator[Result]:
    for subject in _SUBJECTS:
        module = importlib.import_module(f"benchmarks.{subject}")
        if not any(_is_wanted(bar, [name.partition(" ")[0] for name in names]) for bar in module.BARS):
            continue
        with ExitStack() as stack:
            try:
                trials = stack.enter_context(module.trials(setting))
            except (Failed, OSError) as error:
                # What all its rows need is not there: each bar says so.
                nothing = Figure("", "")
                yield from (Result(Row(name=bar, what="", bar=None, ours=nothing), failure=str(error)) for bar in module.BARS)
                continue
            for trial in trials:
                rows = [row for row in trial.rows if _is_wanted(row.name, names)]
                if rows:
                    with console.status(rows[0].name) as status:
                        yield from trial.run(rows, runs, status.update)


def _is_wanted(row: str, names: list[str]) -> bool:
    """Whether a row is one of those that were named, by all of its words or by the first of them."""
    return not names or any(f"{row.casefold()} ".startswith(f"{name.casefold().strip()} ") for name in names)


def _table(results: list[Result], *, profiled: bool) -> Table:
    title = f"asyncdicom against its peers ({platform.machine()}, Python {platform.python_version()})"
    if profiled:
        title += ": profiled, so the figures are not those of a run"
    table = Table(box=box.SIMPLE, title=title)
    right = {"ours", "theirs", "value", "min", "max"}
    for heading in ("bar", "measured", "against", "ours", "theirs", "value", "min", "max", "wanted", "met", "setting"):
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading in right)
    for result in results:
        table.add_row(*_cells(result))
    return table


def _cells(result: Result) -> list[str]:
    row = result.row
    wanted = "" if row.bar is None else f"{'≥' if row.bar.sense == 'at least' else '≤'} {row.bar.value:g}{_unit(row)}"
    if not result.is_measured:
        return [
            row.name,
            row.what,
            row.peer,
            "",
            "",
            "",
            "",
            "",
            wanted,
            "missing" if result.missing else "failed",
            row.setting,
        ]
    both = result.theirs is not None
    met = {True: "yes", False: "no", None: ""}[result.is_met]
    return [
        row.name,
        row.what,
        row.peer,
        _number(result.ours) if both else "",
        _number(result.theirs) if result.theirs is not None else "",
        f"{_number(result.value)}{_unit(row)}",
        _number(min(result.values)),
        _number(max(result.values)),
        wanted,
        met,
        row.setting,
    ]


def _unit(row: Row) -> str:
    return f" {row.unit}" if row.unit else ""


def _number(value: float) -> str:
    """Three digits that count, none of a whole number left out."""
    size = abs(value)
    return (
        f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
