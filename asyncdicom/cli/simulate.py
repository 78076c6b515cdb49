"""``asyncdicom simulate``: a fleet of simulated modalities, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from pydicom.dataset import Dataset

from asyncdicom.cli.ending import OK, Failure, refuse, say
from asyncdicom.cli.running import run
from asyncdicom.testing import Certificates, Fault, SimulatedFleet, assign, certificates
from asyncdicom.testing import simulate as make_fleet
from asyncdicom.testing.instances import synthetic_uid

_TLS = frozenset((Fault.TLS, Fault.SILENT_TLS))


def simulate(count: int, port: int, faults: str, inventory: Path | None, host: str, matches: int, seed: int) -> int:
    """Run the command.

    :return: the exit status
    """
    if count < 1:
        refuse(f"--count {count}: write 1 or more")
    if not 0 <= port <= 65_535:
        refuse(f"--port {port}: write a TCP port from 1 to 65535; 0 takes a free one")
    if matches < 0:
        refuse(f"--matches {matches}: write 0 or more")
    behaviours = assign(count, faults, seed=seed)
    with ExitStack() as stack:
        tls: Certificates | None = None
        if any(behaviour.fault in _TLS for behaviour in behaviours):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="asyncdicom-simulate-")))
            tls = certificates(folder)
        fleet = make_fleet(
            count,
            port,
            faults,
            host=host,
            seed=seed,
            tls=tls,
            settings=lambda index, behaviour: {"matches": studies(index, matches), "keep": "nothing"},
        )
        return run(lambda: _serve(fleet, inventory, tls))


def studies(index: int, count: int) -> Callable[[Dataset], list[Mapping[str, Any]]]:
    """What a simulated modality answers to C-FIND: studies that nobody can mistake for a patient's.

    :param index: of the modality; each has its own studies
    :return: a function from a query to the studies that match it, with the attributes that it asks for
    """
    held = [
        {
            "PatientID": f"SIM-{index + 1}-{number}",
            "PatientName": f"Synthetic^Test{number}",
            "StudyInstanceUID": synthetic_uid("simulate", index, number),
            "StudyDate": "20000101",
            "StudyTime": "120000",
            "StudyDescription": "Synthetic test data",
            "AccessionNumber": f"TEST{number}",
            "ModalitiesInStudy": "CT",
            "NumberOfStudyRelatedInstances": "1",
        }
        for number in range(1, count + 1)
    ]

    def matching(query: Dataset) -> list[Mapping[str, Any]]:
        keys = {element.keyword: str(element.value or "") for element in query}
        return [
            {keyword: study[keyword] for keyword in study if keyword in keys}
            for study in held
            # Wildcards as PS3.4 section C.2.2.2.4 has them; ranges and lists of UIDs match nothing here.
            if all(not value or keyword not in study or fnmatchcase(study[keyword], value) for keyword, value in keys.items())
        ]

    return matching


async def _serve(fleet: SimulatedFleet, inventory: Path | None, tls: Certificates | None) -> int:
    try:
        await fleet.__aenter__()
    except OSError as error:
        remedy = "is something else there? Try --port 0 for a free one"
        raise Failure(f"--port {fleet.port}: cannot listen there: {error.strerror}; {remedy}") from error
    try:
        # Ctrl-C is how it ends when all is well.
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await _tell(fleet, inventory, tls)
            async for _ in signals:
                break
    finally:
        with anyio.CancelScope(shield=True):
            await fleet.__aexit__(None, None, None)
    return OK


async def _tell(fleet: SimulatedFleet, inventory: Path | None, tls: Certificates | None) -> None:
    kinds = Counter(str(modality.behaviour.fault) for modality in fleet.modalities)
    mixture = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    say(f"{len(fleet.modalities)} modalities on port {fleet.port}: {mixture}")
    if inventory is None:
        sys.stdout.write(fleet.inventory_csv())
        sys.stdout.flush()
    else:
        text = "".join(toml_lines(fleet)) if inventory.suffix.lower() == ".toml" else fleet.inventory_csv()
        # A thread of its own, because the modalities serve already.
        with ThreadPoolExecutor(1) as executor:
            try:
                await asyncio.get_running_loop().run_in_executor(executor, inventory.write_text, text, "utf-8")
            except OSError as error:
                raise Failure(f"--inventory {inventory}: cannot be written: {error.strerror}") from error
        say(f"the inventory is in {inventory}: asyncdicom echo --all --config {inventory}")
    if tls is not None and (inventory is None or inventory.suffix.lower() != ".toml"):
        say(f"CSV has no column for TLS: write the inventory to a .toml file, or trust {tls.ca} as localhost")
    say("Ctrl-C ends")


def toml_lines(fleet: SimulatedFleet) -> Iterator[str]:
    """The inventory as a configuration."""
    for modality in fleet.inventory():
        yield "[[modality]]\n"
        yield f'name = "{modality.name}"\nae_title = "{modality.ae_title}"\n'
        yield f'host = "{modality.host}"\nport = {modality.port}\n'
        yield f"groups = [{', '.join(chr(34) + group + chr(34) for group in modality.groups)}]\n"
        if modality.tls is not None:
            yield f'tls = {{ ca = "{modality.tls.ca}", server_name = "{modality.tls.server_name}" }}\n'
        yield "\n"
