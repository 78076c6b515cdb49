"""A receiver that dies at random moments under its senders, again and again, and what is found after each time.

It is a program of its own, because it starts every receiver by a fork: an interpreter that has imported everything already
serves after a tenth of the time, so that many more deaths fit into a test. What is forked runs ``asyncdicom serve``.

With ``--cut`` the archive and its index lie on a file system of their own, whose power is cut: nothing that was not written
out yet ever will be (FS_IOC_SHUTDOWN without flushing the log). Then it is run as root in a mount namespace of its own,
which takes the mount and the loop device with it however the program ends.

What was found is one line of JSON, the fields of :class:`tests.archive.dying.Findings`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio

# Everything that a receiver needs is imported here, once for all of them.
import asyncdicom.archive.archive as composition
import asyncdicom.scp.native
import asyncdicom.service.run  # noqa: F401
from asyncdicom.archive.directory import Directory
from asyncdicom.archive.verification import Progress, verify
from asyncdicom.cli import main as run_command
from asyncdicom.errors import OperationError
from asyncdicom.testing import HeldInstance, Wire, synthetic_study
from asyncdicom.testing.instances import CT_IMAGE_STORAGE, synthetic_uid
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION, PresentationContext
from tests.archive.dying import Findings
from tests.peers.running import free_port

# linux/fs.h: _IOR('X', 125, __u32), and XFS_FSOP_GOING_FLAGS_NOLOGFLUSH, which ext4 understands too.
_SHUTDOWN = 0x8004587D
_WITHOUT_LOG = struct.pack("I", 2)
_IMAGE_SIZE = 1 << 30
_CONTEXTS = [PresentationContext(VERIFICATION), PresentationContext(CT_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,))]
# Rows of 16 pixels, and how often: 1 KB in one batch with others, 130 KB, and 2 MB, which go to the disk as they come.
_SIZES = {32: 0.75, 4096: 0.22, 65_535: 0.03}
# A receiver that does not serve by then will not.
_START_DEADLINE = 20.0
# Seconds from the first sender to the death, at most.
_LONGEST_LIFE = 0.15
_INCOMING = ".incoming"


class Receiver:
    """``asyncdicom serve`` in a forked process.

    :param parts: write files under temporary names, as where the file system has none without
    """

    def __init__(self, config: Path, parts: bool) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            self._be_one(config, parts)

    def _be_one(self, config: Path, parts: bool) -> None:
        status = 70
        try:
            log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if parts:
                # For the archive alone, and in this process alone.
                vars(composition)["Directory"] = functools.partial(Directory, unnamed=False)
            status = run_command(["serve", "--config", str(config)])
        finally:
            # Nothing of the campaign's own is to run in here.
            os._exit(status)

    def kill(self) -> None:
        """End it by SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def has_ended(self) -> bool:
        """Whether it ended by itself; its exit is taken."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid


class Disk:
    """A file system in an image, to be cut off from its device."""

    def __init__(self, image: Path, directory: Path, make: list[str]) -> None:
        self._image = image
        self._directory = directory
        directory.mkdir()
        with image.open("wb") as file:
            file.truncate(_IMAGE_SIZE)
        subprocess.run([*make, str(image)], check=True, stdout=sys.stderr)
        self.mount()

    def mount(self) -> None:
        """What the machine does when it starts: the log is played back."""
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self._directory)], check=True)

    def cut(self) -> None:
        """From now on nothing reaches the device."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_LOG)
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Forget all that was in memory."""
        subprocess.run(["umount", str(self._directory)], check=True)


class Campaign:
    """Deaths in a row of one archive.

    :param folder: where everything lies
    :param make: how to make the file system whose power is cut; None for SIGKILL alone
    :param duplicates: with ``replace``, some instances are sent again with other bytes
    :param parts: the chance of a receiver that writes under temporary names
    """

    def __init__(
        self,
        folder: Path,
        *,
        make: list[str] | None,
        durability: str,
        duplicates: str,
        senders: int,
        parts: float,
        seed: str,
    ) -> None:
        self.found = Findings()
        self._lost: set[str] = set()
        self._torn: set[str] = set()
        self._inconsistent: set[str] = set()
        self._left: set[str] = set()
        self._chance = random.Random(seed)
        self._seed = seed
        self._senders = senders
        self._parts = parts
        self._replaces = duplicates == "replace"
        self._data = folder / "data"
        self._disk = Disk(folder / "image", self._data, make) if make else None
        self._port = free_port()
        self._config = folder / "asyncdicom.toml"
        self._config.write_text(
            f"[scp]\nport = {self._port}\n"
            f'[archive]\ndirectory = "data/archive"\nindex = "sqlite:data/index.db"\nmin_free = "0 B"\n'
            f'durability = "{durability}"\nduplicates = "{duplicates}"\n'
        )
        # What is imported only when it is needed is needed by every receiver.
        anyio.run(anyio.sleep, 0)
        with contextlib.redirect_stdout(sys.stderr):
            run_command(["check-config", str(self._config)])
        # By SOP Instance UID, the SHA-256 of what may be there: of the dataset that was acknowledged last, and of those that
        # a sender has begun since then.
        self._possible: dict[str, set[str]] = {}
        self._acknowledged: set[str] = set()
        # Without an answer: whoever sends them has to send them again. Of one instance the last that was tried, because two
        # at once have no order.
        self._unanswered: dict[str, HeldInstance] = {}
        self._receiver: Receiver | None = None

    @property
    def _archive(self) -> Path:
        return self._data / "archive"

    def run(self, deaths: int) -> Findings:
        """Start, send, die and look, so many times, and look at everything in the end."""
        try:
            return self._run(deaths)
        finally:
            if self._receiver is not None:
                self._receiver.kill()
            self.found.lost, self.found.torn = sorted(self._lost), sorted(self._torn)
            self.found.inconsistent, self.found.left = sorted(self._inconsistent), sorted(self._left)

    def _start(self, parts: bool) -> Receiver:
        self._receiver = Receiver(self._config, parts)
        return self._receiver

    def _run(self, deaths: int) -> Findings:
        for number in range(deaths):
            before = set(self._acknowledged)
            receiver = self._start(self._chance.random() < self._parts)
            if number and self._chance.random() < 0.15:
                # A start recovers what the last life left: it can be the moment of the next death, too.
                time.sleep(self._chance.uniform(0.0, 0.08))
                self.found.while_starting += 1
                self._die(receiver)
                continue
            if not self._await(receiver):
                return self.found
            self._look_again()
            asyncio.run(self._send(str(number), receiver))
            self._look_at_once(self._acknowledged - before)
        return self._end()

    def _end(self) -> Findings:
        if not self._await(self._start(parts=False)):
            return self.found
        self._look_again()
        self.found.kept_unanswered = len(self._rows().keys() - self._acknowledged)
        self._compare(self._acknowledged, self._possible.keys())
        asyncio.run(self._verify())
        self.found.offered = len(self._possible)
        self.found.acknowledged = len(self._acknowledged)
        return self.found

    def _die(self, receiver: Receiver) -> None:
        if self._disk is not None:
            self._disk.cut()
            # A moment in which it goes on, without a disk: what it acknowledges now counts as well.
            time.sleep(self._chance.uniform(0.0, 0.02))
        receiver.kill()
        self._receiver = None
        self.found.deaths += 1
        if self._disk is not None:
            self._disk.unmount()
            self._disk.mount()

    # Starting

    def _await(self, receiver: Receiver) -> bool:
        started = time.monotonic()
        while not asyncio.run(self._serves()):
            ended = receiver.has_ended()
            if ended or time.monotonic() - started > _START_DEADLINE:
                self._receiver = None if ended else receiver
                log = self._config.with_suffix(".log").read_text(errors="replace")
                self.found.broken = f"the receiver does not serve: {log[-2000:]}"
                return False
            time.sleep(0.005)
        self.found.slowest_start = max(self.found.slowest_start, time.monotonic() - started)
        return True

    async def _serves(self) -> bool:
        try:
            async with await Wire.connect("127.0.0.1", self._port) as wire:
                await wire.associate()
                return await wire.echo() == 0x0000 and await wire.release()
        except (OSError, OperationError):
            return False

    # Sending

    async def _send(self, name: str, receiver: Receiver) -> None:
        unanswered = list(self._unanswered.values())
        again = [unanswered[number :: self._senders] for number in range(self._senders)]
        self._unanswered = {}
        senders = [
            asyncio.create_task(self._sender(self._offers(f"{self._seed} {name} {number}", again[number])))
            for number in range(self._senders)
        ]
        await asyncio.sleep(self._chance.uniform(0.0, _LONGEST_LIFE))
        await asyncio.get_running_loop().run_in_executor(None, self._die, receiver)
        await asyncio.gather(*senders)

    def _offers(self, seed: str, again: list[HeldInstance]) -> Iterator[HeldInstance]:
        yield from again
        chance = random.Random(seed)
        number = 0
        while True:
            number += 1
            (size,) = chance.choices(list(_SIZES), list(_SIZES.values()))
            # A series for a few, so that folders are made at any moment, too.
            series = synthetic_uid(seed, number // 6)
            ((uid, file),) = synthetic_study(1, size, 16, study=series, series=series, seed=f"{seed} {number}")
            yield _held(uid, file)
            if self._replaces and chance.random() < 0.4:
                # Other pixels; the first ones may be there already, or not.
                yield _held(uid, file[:-4] + number.to_bytes(4, "little"))

    async def _sender(self, offers: Iterator[HeldInstance]) -> None:
        """Send one after the other on one association, until there is nobody any more."""
        offer = None
        try:
            async with await Wire.connect("127.0.0.1", self._port, timeout=10.0) as wire:
                await wire.associate(_CONTEXTS)
                for offer in offers:
                    sha256 = hashlib.sha256(offer.dataset).hexdigest()
                    self._possible.setdefault(offer.sop_instance_uid, set()).add(sha256)
                    status = await wire.store(offer)
                    if status == 0x0000:
                        self._possible[offer.sop_instance_uid] = {sha256}
                        self._acknowledged.add(offer.sop_instance_uid)
                    else:
                        self.found.refused += 1
                        self._unanswered[offer.sop_instance_uid] = offer
                    offer = None
        except (OSError, OperationError):
            # It is dead: what was under way is for the next one.
            if offer is not None:
                self._unanswered[offer.sop_instance_uid] = offer

    # Looking

    def _look_at_once(self, acknowledged: set[str]) -> None:
        """Before anything is repaired: what has a final name is whole, and what was acknowledged has one."""
        self._compare(acknowledged, acknowledged | self._unanswered.keys())

    def _compare(self, acknowledged: Set[str], looked_at: Set[str]) -> None:
        """Files under a final name with what was sent, as far as they are looked at, and what was acknowledged with files."""
        files, others = self._files()
        self._lost |= acknowledged - files.keys()
        self._torn |= files.keys() - self._possible.keys()
        self._torn |= {path for path in others if _INCOMING not in path}
        self.found.swept += len(others)
        for uid in looked_at & files.keys():
            encoded = Path(files[uid]).read_bytes()
            offset = 144 + int.from_bytes(encoded[140:144], "little")
            if hashlib.sha256(encoded[offset:]).hexdigest() not in self._possible[uid]:
                self._torn.add(files[uid])

    def _look_again(self) -> None:
        """Once it serves: rows and files are the same, everything acknowledged is among them, and nothing else is there."""
        rows = self._rows()
        files, others = self._files()
        self._left |= others
        self._inconsistent |= rows.keys() ^ files.keys()
        self._lost |= {uid for uid in self._acknowledged if rows.get(uid) not in self._possible[uid]}

    def _files(self) -> tuple[dict[str, str], set[str]]:
        """Instances by their SOP Instance UID, and everything else."""
        files, others = {}, set()
        for folder, _, names in os.walk(self._archive):
            for name in names:
                if name.endswith(".dcm") and _INCOMING not in folder:
                    files[name.removesuffix(".dcm")] = f"{folder}/{name}"
                else:
                    others.add(f"{folder}/{name}")
        return files, others

    def _rows(self) -> dict[str, str]:
        with contextlib.closing(sqlite3.connect(f"file:{self._data / 'index.db'}?mode=ro", uri=True, timeout=10)) as connection:
            return dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instances").fetchall())

    async def _verify(self) -> None:
        progress = Progress()
        async for difference in verify(self._archive, self._data / "index.db", progress):
            self.found.differences.append(f"{difference.kind} {difference.path}: {difference.detail}")
        self.found.verified = progress.read


def _held(uid: str, file: bytes) -> HeldInstance:
    dataset = memoryview(file)[144 + int.from_bytes(file[140:144], "little") :]
    return HeldInstance(file, dataset, CT_IMAGE_STORAGE, uid, EXPLICIT_VR_LITTLE_ENDIAN, {})


def main(arguments: argparse.Namespace) -> None:
    """Run a campaign and print what it found."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(
        folder,
        make=arguments.cut.split() if arguments.cut else None,
        durability=arguments.durability,
        duplicates=arguments.duplicates,
        senders=arguments.senders,
        parts=arguments.parts,
        seed=arguments.seed,
    )
    found = campaign.run(arguments.deaths)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--deaths", type=int, default=10)
    parser.add_argument("--cut", help="the command that makes the file system, its image as the last word")
    parser.add_argument("--durability", default="full")
    parser.add_argument("--duplicates", default="keep-first")
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--parts", type=float, default=0.5)
    parser.add_argument("--seed", default="0")
    main(parser.parse_args())
