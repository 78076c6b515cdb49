"""``asyncdicom echo``: who answers."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from asyncdicom.cli.ending import FAILED, OK, refuse, say
from asyncdicom.cli.options import Asking, Form
from asyncdicom.cli.output import Output
from asyncdicom.cli.progress import Meter
from asyncdicom.cli.rendering import (
    OUTCOME_HEADER,
    Column,
    Kind,
    Rows,
    View,
    address_of,
    as_json,
    explanation,
    kind_of,
    milliseconds,
    outcome_record,
    reason_style,
    tally,
)
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose
from asyncdicom.cli.watch import watch
from asyncdicom.outcome import Outcome


def _address(outcome: Outcome) -> str:
    # A target that was named by its address is not told twice.
    address = address_of(outcome)
    return "" if address == outcome.modality else address


ECHOES: View[Outcome] = View(
    json=lambda outcome: as_json(outcome.as_json()),
    header=OUTCOME_HEADER,
    record=outcome_record,
    columns=(
        Column("modality", lambda outcome: outcome.modality, fit="whole"),
        Column("address", _address, lambda _: "dim", fit="whole"),
        Column("result", lambda outcome: str(outcome.reason), reason_style, fit="whole"),
        Column("time", lambda outcome: milliseconds(outcome.duration), right=True, fit="whole"),
        Column("what happened", explanation),
    ),
)


def echo(targets: Sequence[str], every: float | None, asking: Asking, form: Form) -> int:
    """Run the command.

    :param every: seconds between two rounds; None for a single one
    :return: the exit status
    """
    if not targets:
        refuse("echo: name at least one TARGET, or ask --all")
    if every is not None and not every > 0:
        refuse(f"--every {every}: write a number of seconds above 0")
    kind = kind_of(form)
    # A watch shows what is: leaving a modality alone after some failures would hide when it comes back.
    asked = choose(asking, targets, quick=True, breaker=every is None)
    if every is None:
        return run(lambda: _once(asked, kind))
    if kind == "table":
        return run(lambda: watch(asked, every))
    return run(lambda: _repeat(asked, kind, every))


async def _once(asked: Asked, kind: Kind) -> int:
    outcomes: list[Outcome] = []
    position = {modality.name: index for index, modality in enumerate(asked.targets)}
    async with Output() as output:
        rows = Rows(output, kind, ECHOES)
        await rows.begin()
        try:
            async with Meter("C-ECHO", len(asked.targets), kind=kind) as meter, asked.fleet:
                async for outcome in asked.fleet.echo(asked.targets):
                    outcomes.append(outcome)
                    await rows.add(outcome)
                    meter.advance()
        finally:
            rows.end(lambda outcome: position[outcome.modality])
    failures = [outcome.reason for outcome in outcomes if not outcome.ok]
    if kind in ("table", "plain") and len(outcomes) > 1:
        failed = f"; {len(failures)} did not: {tally(failures)}" if failures else ""
        say(f"{len(outcomes) - len(failures)} of {len(outcomes)} answered{failed}")
    return FAILED if failures else OK


async def _repeat(asked: Asked, kind: Kind, every: float) -> int:
    async with Output() as output, asked.fleet:
        rows = Rows(output, kind, ECHOES)
        await rows.begin()
        while True:
            due = anyio.current_time() + every
            async for outcome in asked.fleet.echo(asked.targets):
                await rows.add(outcome)
            await anyio.sleep_until(due)
