"""``asyncdicom verify``: is everything that was acknowledged still there, byte for byte?"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from asyncdicom.archive.verification import Difference, Progress, verify
from asyncdicom.cli.ending import FAILED, OK, refuse
from asyncdicom.cli.output import Output
from asyncdicom.cli.progress import Meter
from asyncdicom.cli.rendering import as_json, clean
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import DEFAULT_FILE, VARIABLE, find_config
from asyncdicom.service.config import load

_REMEDIES = {
    "missing": "restore the file from a backup, or have its sender send it again",
    "damaged": "restore the file from a backup, or remove it and have its sender send it again",
    "unreadable": "look at the disk and its log",
    "unknown": "nothing was acknowledged for it; restart the service to have what is whole indexed, or move it away",
}


def verify_archive(config: Path | None, json: bool) -> int:
    """Read every instance of the configured archive again, and tell every difference.

    :return: the exit status
    """
    path = find_config(config)
    if path is None:
        refuse(f"there is no configuration: name one, put {DEFAULT_FILE} here, or set ${VARIABLE}")
    loaded = load(path)
    directory, index = loaded.archive_directory, loaded.index
    if directory is None:
        refuse(f"{path}: there is no [archive] to verify")
    if index is None or not index.startswith("sqlite:"):
        refuse(f'{path}: archive.index = "none": without an index nothing tells what was acknowledged')

    async def work() -> int:
        return await _verify(directory, Path(index.removeprefix("sqlite:")), json)

    return run(work)


async def _verify(directory: Path, index: Path, json: bool) -> int:
    progress = Progress()
    found: Counter[str] = Counter()
    started = time.monotonic()
    async with Output() as output, Meter("instances read again", kind="json" if json else "table") as meter:

        def told() -> None:
            meter.expect(progress.expected)
            meter.reach(progress.read)

        async for difference in verify(directory, index, progress, told):
            found[difference.kind] += 1
            await output.line(_as_json(difference) if json else _in_words(difference))
        seconds = time.monotonic() - started
        if json:
            summary = {
                "instances": progress.read,
                "size": progress.size,
                "files": progress.files,
                "seconds": round(seconds, 3),
                "differences": {kind: found[kind] for kind in _REMEDIES},
            }
            output.put(as_json({"_summary": summary}))
        else:
            for kind in (kind for kind in _REMEDIES if found[kind]):
                output.put(f"{found[kind]:,} {kind}: {_REMEDIES[kind]}")
            fine = progress.read - found["missing"] - found["damaged"] - found["unreadable"]
            output.put(
                f"{fine:,} of {progress.read:,} instances are as they arrived, {progress.size / 1e6:,.1f} MB in {seconds:.1f} s"
            )
    return FAILED if found else OK


def _as_json(difference: Difference) -> str:
    return as_json(
        {
            "kind": difference.kind,
            "path": difference.path,
            "SOPInstanceUID": difference.sop_instance_uid or None,
            "detail": difference.detail,
        }
    )


def _in_words(difference: Difference) -> str:
    return f"{difference.kind}: {clean(difference.path)}: {clean(difference.detail)}"
