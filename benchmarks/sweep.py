"""P7: a sweep of thousands of simulated modalities of which some never answer.

As a program, it is one sweep, and tells seconds and its peak of memory:
``python -m benchmarks.sweep CONFIGURATION (all|healthy) DEADLINE`` (0 for none).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.comparison import Figure, Readings, Row, Trial, at_most
from benchmarks.processes import module, peak_resident, tell, told_by
from benchmarks.setting import Setting
from benchmarks.simulated import simulated

BARS = ("P7",)

_MODALITIES = 5_000
_SILENT = "5%"
_CONCURRENCY = 500
_TIMEOUT = 2.0
# Shorter than either the timeouts or the healthy ones' answers need.
_DEADLINE = 1.0


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trial, with the simulated modalities running."""
    with simulated(setting.memory / "sweep", _MODALITIES, f"silent={_SILENT}") as inventory:
        configuration = inventory.with_name("fleet.toml")
        timeouts = ", ".join(f"{name} = {_TIMEOUT}" for name in ("connect", "associate", "operation", "release"))
        configuration.write_text(
            f"[fleet]\nconcurrency = {_CONCURRENCY}\ndeadline = 0\ntimeouts = {{ {timeouts} }}\n"
            f'[modalities]\nfiles = ["{inventory.name}"]\n'
        )

        def sweep(targets: str, deadline: float = 0.0) -> Readings:
            return told_by(module("benchmarks.sweep", configuration, targets, deadline))

        sides = {
            "healthy": lambda: sweep("healthy"),
            "all": lambda: sweep("all"),
            "deadline": lambda: sweep("all", _DEADLINE),
        }
        words = f"{_MODALITIES:,} modalities, {_SILENT} of them silent, timeouts {_TIMEOUT:g} s, {_CONCURRENCY} at a time"
        rows = [
            Row(
                name="P7 silent",
                what="sweep, s",
                bar=at_most(2.5),
                ours=Figure("all", "seconds"),
                theirs=Figure("healthy", "seconds"),
                against="difference",
                peer="a sweep of the healthy alone",
                unit="s",
                setting=words,
            ),
            Row(
                name="P7 deadline",
                what="sweep, s",
                bar=at_most(0.5),
                ours=Figure("deadline", "seconds"),
                theirs=Figure("deadline", "deadline"),
                against="difference",
                peer="its deadline",
                unit="s",
                setting=words,
            ),
            Row(
                name="P7 memory",
                what="sweep, peak RSS",
                bar=at_most(150),
                ours=Figure("all", "peak"),
                unit="MB",
                setting=words,
            ),
        ]
        yield [Trial(sides, rows)]


# The program


def _sweep(configuration: Path, only_healthy: bool, deadline: float) -> None:
    import anyio

    from asyncdicom import Fleet, Outcome, Reason

    async def run() -> tuple[float, list[Outcome], int]:
        async with Fleet.load(configuration, deadline=deadline or None) as fleet:
            targets = fleet.select("@healthy" if only_healthy else "@all")
            started = time.monotonic()
            outcomes = [outcome async for outcome in fleet.echo(targets)]
            spent = time.monotonic() - started
        silent = 0 if only_healthy else len(fleet.select("@silent"))
        if {outcome.modality for outcome in outcomes} != {target.name for target in targets} or len(outcomes) != len(targets):
            raise RuntimeError(f"{len(outcomes)} outcomes of {len(targets)} modalities")
        return spent, outcomes, silent

    spent, outcomes, silent = anyio.run(run)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    expected = {Reason.ASSOCIATE_TIMEOUT} | ({Reason.DEADLINE} if deadline else set())
    if {outcome.reason for outcome in failed} - expected or (not deadline and len(failed) != silent):
        reasons = sorted({str(outcome.reason) for outcome in failed})
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} failed where {silent} are silent: {', '.join(reasons)}")
    tell(seconds=spent, deadline=deadline, peak=peak_resident("self") / 1e6)


if __name__ == "__main__":
    file, whom, limit = sys.argv[1:]
    _sweep(Path(file), whom == "healthy", float(limit))
