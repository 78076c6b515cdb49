"""What a program asked of the kernel, as strace tells it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STORING = Path(__file__).with_name("storing.py")
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)(?P<comment>.*)")
_BEGUN = re.compile(r"(?P<call>\w+\(.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")


@dataclass(frozen=True)
class Call:
    """A system call: in which lines of the trace it began and ended."""

    name: str
    arguments: str
    result: int
    begun: int
    ended: int
    pid: int
    injected: bool


def calls(trace: Path) -> list[Call]:
    """The system calls of a trace of several threads, in the order of their ends."""
    found = []
    begun: dict[str, tuple[str, int]] = {}
    for number, text in enumerate(trace.read_text(errors="replace").splitlines()):
        line = _LINE.match(text)
        if line is None:
            continue
        pid, rest = line["pid"], line["rest"]
        start = number
        if unfinished := _BEGUN.match(rest):
            begun[pid] = (unfinished["call"], number)
            continue
        if (resumed := _RESUMED.match(rest)) and pid in begun:
            first, start = begun.pop(pid)
            rest = first + resumed["rest"]
        if (call := _CALL.match(rest)) and call["result"] != "?":
            injected = "INJECTED" in call["comment"]
            found.append(Call(call["name"], call["arguments"], int(call["result"]), start, number, int(pid), injected))
    return found


def storing(directory: Path, *options: str) -> list[str]:
    """The command line of the program that stores."""
    return [sys.executable, str(STORING), str(directory), *options]


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program with its input and output; ended when it is not needed any more."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def traced(process: subprocess.Popen[str], trace: Path, *options: str) -> Iterator[None]:
    """Follow a running program with strace for a while."""
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), *options, "-p", str(process.pid)]
    with subprocess.Popen(command) as strace:
        try:
            _await_tracer(process.pid)
            yield
        finally:
            strace.terminate()
            strace.wait(10)


def _await_tracer(pid: int) -> None:
    """Return once every thread of a process is traced."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        tasks = [Path(f"/proc/{pid}/task/{task}/status").read_text() for task in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
        if all("TracerPid:\t0" not in status for status in tasks):
            return
        time.sleep(0.01)
    raise TimeoutError("strace did not attach")
