"""Running the campaigns of :mod:`tests.archive.campaign`, with and without a power cut, and judging what they found."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.peers.fixtures import give_up
from tests.peers.running import run_program

_CAMPAIGN = Path(__file__).with_name("campaign.py")
# A mount namespace takes the mount with it, and a process namespace every process, however the campaign ends.
_ALONE = ("unshare", "--mount", "--fork", "--pid", "--mount-proc", "--kill-child")
# What a start may take, in seconds; without the interpreter's own, which is started once for all of them.
_SERVING_AGAIN = 5.0


@dataclass
class Findings:
    """What a campaign found.

    :ivar deaths: how often a receiver died
    :ivar while_starting: how many of these were before it served
    :ivar offered: instances that were sent, whole or in part
    :ivar acknowledged: those that were answered with success
    :ivar refused: how often one was answered with another status
    :ivar kept_unanswered: instances found although their sender had no answer, which is no fault
    :ivar lost: acknowledged and not found, or not indexed
    :ivar torn: files under a final name that are not byte for byte what was sent
    :ivar inconsistent: rows without their file and files without their row, once a receiver serves again
    :ivar left: names that are no instances, once a receiver serves again
    :ivar swept: unfinished files that deaths left behind
    :ivar slowest_start: seconds until an association and a C-ECHO succeeded, at most
    :ivar verified: instances that were read again at the end, as ``asyncdicom verify`` does it
    :ivar differences: what that told
    :ivar broken: why the campaign could not go on
    """

    deaths: int = 0
    while_starting: int = 0
    offered: int = 0
    acknowledged: int = 0
    refused: int = 0
    kept_unanswered: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    swept: int = 0
    slowest_start: float = 0.0
    verified: int = 0
    differences: list[str] = field(default_factory=list)
    broken: str = ""

    def check(self, deaths: int) -> None:
        """Hold it to what is promised."""
        assert not self.broken, self.broken
        assert self.deaths == deaths
        assert not self.lost
        assert not self.torn
        assert not self.inconsistent
        assert not self.left
        assert not self.differences
        assert self.slowest_start <= _SERVING_AGAIN
        # Else nothing was shown: the senders had no time.
        assert self.acknowledged >= deaths
        assert self.verified == self.acknowledged + self.kept_unanswered

    def __str__(self) -> str:
        return (
            f"{self.deaths} deaths ({self.while_starting} while starting), {self.acknowledged} of {self.offered} instances"
            f" acknowledged, {len(self.lost)} lost, {len(self.torn)} torn, {self.swept} unfinished files swept,"
            f" serving again within {self.slowest_start:.2f} s"
        )


def campaign(folder: Path, *options: str, cut: str | None = None, timeout: float = 120.0) -> Findings:
    """Run a campaign to its end.

    :param options: of the program
    :param cut: the command that makes the file system whose power is cut; None for SIGKILL alone
    :param timeout: seconds until it is killed, with all that it started
    """
    command = [sys.executable, str(_CAMPAIGN), str(folder), *options]
    if cut is not None:
        command = [*_ALONE, *command, "--cut", cut]
    try:
        ran = run_program(command, timeout)
    finally:
        # A gigabyte, however little of it is used.
        (folder / "image").unlink(missing_ok=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    return Findings(**found)


def require_power_cuts(make: str) -> None:
    """Skip a test where no file system can be made, mounted and cut off; with CI=true only where there are no loop devices.

    :param make: the program that makes the file system
    """
    if not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices here (/dev/loop-control): no power can be cut")
    if os.geteuid() != 0:
        give_up("mounting a file system, to cut its power, needs root")
    for program, package in ((make, "e2fsprogs or xfsprogs"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            give_up(f"{program} is not installed (Debian package {package})")
