"""``asyncdicom probe``: what ``/probe`` would answer, with what was said on the wire."""

from __future__ import annotations

from asyncdicom.cli.ending import FAILED, OK, refuse
from asyncdicom.cli.options import Asking
from asyncdicom.cli.output import Output
from asyncdicom.cli.rendering import as_json
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose
from asyncdicom.monitor.probe import DEFAULT_TIMEOUT, Probed, explain, probe


def probe_target(target: str, module: str, asking: Asking, json: bool) -> int:
    """Run the command.

    :return: the exit status
    """
    asked = choose(asking, [target], quick=True, breaker=False, deadline_by_caller=True)
    if len(asked.targets) != 1:
        refuse(f"probe: {target} names {len(asked.targets)} modalities, and a probe asks one")
    return run(lambda: _probe(asked, module, json))


async def _probe(asked: Asked, module: str, json: bool) -> int:
    async with Output() as output:
        async with asked.fleet:
            probed = await probe(asked.fleet, asked.targets[0], module, asked.deadline or DEFAULT_TIMEOUT)
        for line in [_json(probed)] if json else explain(probed).splitlines():
            await output.line(line)
    return OK if probed.outcome.ok else FAILED


def _json(probed: Probed) -> str:
    outcome = probed.outcome
    return as_json(
        {
            **outcome.as_json(),
            "module": probed.module,
            "operation": outcome.operation,
            "detail": outcome.detail,
            "remedy": outcome.remedy,
            "timeout_s": probed.timeout,
            "matches": probed.matches,
            "transcript": list(probed.transcript),
        }
    )
