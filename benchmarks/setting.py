"""What all subjects share: where they may write, the instances that are sent, and what was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from asyncdicom.testing import synthetic_study
from benchmarks.processes import Failed, end

Size = Literal["small", "large"]

# Rows and columns of 16 bits: about 9 KB and about 525 KB.
PIXELS: dict[Size, int] = {"small": 64, "large": 512}
PROFILE_SUFFIXES = {"flamegraph": ".svg", "speedscope": ".speedscope.json", "raw": ".txt"}
_PROFILER_READY = 10.0


@dataclass(frozen=True)
class Setting:
    """One run of the benchmarks.

    :ivar memory: a folder in memory, where nothing is synced
    :ivar disk: a folder on the disk, for what is durable
    :ivar large_size: bytes of the one large instance
    :ivar index_rows: instances of the grown index
    :ivar profile_stem: what the names of profiles begin with; None for no profiles
    :ivar profile_format: as py-spy knows it
    """

    memory: Path
    disk: Path
    large_size: int
    index_rows: int
    profile_stem: Path | None = None
    profile_format: str = "flamegraph"
    _made: dict[Size, list[Path]] = field(default_factory=lambda: {"small": [], "large": []}, repr=False)

    def instances(self, size: Size, count: int) -> list[Path]:
        """Files of one synthetic CT series, made when they are first asked for."""
        made = self._made[size]
        if len(made) < count:
            folder = self.memory / f"instances-{size}"
            folder.mkdir(exist_ok=True)
            for uid, data in islice(synthetic_study(count, rows=PIXELS[size], columns=PIXELS[size]), len(made), None):
                made.append(folder / f"{uid}.dcm")
                made[-1].write_bytes(data)
        return made[:count]

    @contextmanager
    def folder(self, durability: str) -> Iterator[Path]:
        """A new folder for one receiver: in memory where nothing is synced, else on the disk.

        On the disk it stays until the end of the run. For five minutes ext4 gives no inode of a deleted file away again, and
        whoever makes a file looks past all of them (recently_deleted in fs/ext4/ialloc.c): 0.2 ms a file after a few thousand.
        """
        if durability == "none":
            with tempfile.TemporaryDirectory(dir=self.memory) as folder:
                yield Path(folder)
        else:
            yield Path(tempfile.mkdtemp(dir=self.disk))

    @contextmanager
    def profiled(self, pid: int, name: str) -> Iterator[None]:
        """Have py-spy record a process while the block runs, where that was asked for. The last turn's profile stays.

        :param name: what is profiled, for the file's name
        """
        if self.profile_stem is None:
            yield
            return
        file = self.profile_stem.with_name(
            f"{self.profile_stem.name}-{name.replace(' ', '-')}{PROFILE_SUFFIXES[self.profile_format]}"
        )
        argv = [Path(sys.executable).with_name("py-spy"), "record", "--threads", "--rate", "200"]
        argv += ["--format", self.profile_format, "--output", file, "--pid", str(pid)]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log)
            try:
                # It tells when it begins; a process that it may not look at, it refuses before.
                deadline = time.monotonic() + _PROFILER_READY
                while b"Sampling" not in (said := os.pread(log.fileno(), 4096, 0)):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise Failed(f"py-spy does not record the receiver: {said.decode(errors='replace').strip()[-400:]}")
                    time.sleep(0.05)
                yield
            finally:
                # Upon Ctrl-C it writes what it has.
                end(process, signal.SIGINT)
