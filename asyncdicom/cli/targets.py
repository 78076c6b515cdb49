"""Which configuration counts, and the fleet that it makes with the options of a command."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from asyncdicom.cli.ending import refuse
from asyncdicom.cli.options import Asking
from asyncdicom.errors import ConfigurationError
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.fleet.limits import Breaker
from asyncdicom.modality import Modality, check_ae_title

DEFAULT_FILE = Path("asyncdicom.toml")
VARIABLE = "ASYNCDICOM_CONFIG"

# Seconds for a run of C-ECHO where no configuration says otherwise; the same as there.
_ECHO_DEADLINE = 10.0


def find_config(named: Path | None) -> Path | None:
    """Return the configuration that counts, None when there is none.

    :param named: what ``--config`` says; whether it is there is found out by reading it
    """
    if named is not None:
        return named
    if DEFAULT_FILE.is_file():
        return DEFAULT_FILE
    variable = os.environ.get(VARIABLE)
    return Path(variable) if variable else None


@dataclass(frozen=True)
class Asked:
    """A fleet that is not entered yet, and whom of it to ask.

    :ivar deadline: seconds for the whole run, None for no limit
    """

    fleet: Fleet
    targets: list[Modality]
    deadline: float | None

    def until(self) -> float:
        """When the run has to be over, on the clock of the event loop, if it begins now."""
        return math.inf if self.deadline is None else anyio.current_time() + self.deadline


def choose(
    options: Asking, targets: Sequence[str], *, quick: bool = False, breaker: bool = True, deadline_by_caller: bool = False
) -> Asked:
    """Make the fleet for a command, and select its targets.

    :param quick: the operation takes no time of its own, so that the deadline has a default. What moves data takes as long as
        it takes: there a deadline counts only where somebody wrote one
    :param breaker: leave a modality alone after repeated failures
    :param deadline_by_caller: the caller sees to the deadline, because its run is made of several
    :raises ConfigurationError: when a target names nothing, or the configuration has mistakes
    """
    path = find_config(options.config)
    modalities: tuple[Modality, ...] = ()
    title, concurrency, retries, circuit = "ASYNCDICOM", 64, 0, Breaker()
    deadline = _ECHO_DEADLINE if quick else None
    if path is not None:
        # Reading one takes pydantic, which takes longer to import than a target to answer.
        from asyncdicom.fleet.inventory import load_inventory

        inventory = load_inventory(path)
        modalities, title = inventory.modalities, inventory.calling_ae_title
        settings = inventory.fleet
        concurrency, retries = settings.concurrency, settings.retries
        circuit = Breaker(settings.breaker.failures, settings.breaker.open_for)
        if quick or "deadline" in settings.model_fields_set:
            deadline = settings.deadline
    if options.deadline is not None:
        if not 0 < options.deadline < math.inf:
            refuse(f"--deadline {options.deadline:g}: write a number of seconds above 0")
        deadline = options.deadline
    if options.concurrency is not None:
        if options.concurrency < 1:
            refuse(f"--concurrency {options.concurrency}: write a number of associations at once, at least 1")
        concurrency = options.concurrency
    if options.calling is not None:
        title = check_ae_title(options.calling, "--calling")
    fleet = Fleet(
        # What is written on the command line stands above what the file says of a single modality.
        [replace(modality, calling_ae_title=None) for modality in modalities] if options.calling is not None else modalities,
        calling_ae_title=title,
        concurrency=concurrency,
        deadline=None if deadline_by_caller else deadline,
        retries=retries,
        breaker=circuit if breaker else Breaker(failures=0),
        engine=options.engine,
    )
    return Asked(fleet, _select(fleet, targets, path), deadline)


def _select(fleet: Fleet, targets: Sequence[str], path: Path | None) -> list[Modality]:
    try:
        chosen = fleet.select(*targets)
    except ConfigurationError as error:
        if error.path != "target":
            raise
        if path is None and "@" not in str(error.value).lstrip("@"):
            refuse(
                f"{error.value!r} is a name, and there is no configuration to look it up in: write AET@host:port, "
                f"or name a file with --config (none at {DEFAULT_FILE}, ${VARIABLE} is not set)"
            )
        names = [modality.name for modality in fleet.modalities]
        names += sorted({f"@{group}" for modality in fleet.modalities for group in modality.groups})
        near = difflib.get_close_matches(str(error.value), names, n=1, cutoff=0.6)
        refuse(f"target {error.value!r}: {error.remedy}" + (f"; did you mean {near[0]}?" if near else ""))
    if not chosen:
        where = "there is no configuration" if path is None else f"{path} has no modalities"
        refuse(f"nobody to ask: {where}; write AET@host:port, or add [[modality]] to a configuration")
    return chosen
