"""``asyncdicom probe``: what ``/probe`` would answer, with what was said on the wire."""

from __future__ import annotations

from asyncdicom.cli.ending import FAILED, OK, refuse
from asyncdicom.cli.options import Asking
from asyncdicom.cli.output import Output
from asyncdicom.cli.rendering import as_json
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose, find_config
from asyncdicom.monitor.modules import ProbeModule, module_named
from asyncdicom.monitor.probe import DEFAULT_TIMEOUT, Probed, explain, probe
from asyncdicom.service.probe_tables import read_modules


def probe_target(target: str, module: str, asking: Asking, json: bool) -> int:
    """Run the command.

    :return: the exit status
    """
    chosen = module_named(read_modules(find_config(asking.config)), module)
    asked = choose(asking, [target], quick=True, breaker=False, deadline_by_caller=True)
    if len(asked.targets) != 1:
        refuse(f"probe: {target} names {len(asked.targets)} modalities, and a probe asks one")
    return run(lambda: _probe(asked, chosen, json))


async def _probe(asked: Asked, module: ProbeModule, json: bool) -> int:
    async with Output() as output:
        async with asked.fleet:
            probed = await probe(asked.fleet, asked.targets[0], module, asked.deadline or DEFAULT_TIMEOUT)
        for line in [_json(probed)] if json else explain(probed).splitlines():
            await output.line(line)
    return OK if probed.ok else FAILED


def _json(probed: Probed) -> str:
    outcome = probed.outcome
    return as_json(
        {
            **outcome.as_json(),
            "ok": probed.ok,
            "module": probed.module.name,
            "operation": outcome.operation,
            "detail": outcome.detail,
            "remedy": outcome.remedy,
            "timeout_s": probed.timeout,
            "matches": probed.matches,
            "min_matches": probed.module.min_matches,
            "certificate_expires": outcome.certificate_expires,
            "transcript": list(probed.transcript),
        }
    )
