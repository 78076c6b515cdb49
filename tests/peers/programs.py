"""The foreign programs that tests talk to: where they are, what to do when they are missing, how to install them.

``python tests/peers/programs.py`` installs what is missing, on Debian and as root; elsewhere it says what stays missing.
This file stands on the standard library alone, because it runs before the virtual environment exists.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_DCMTK = (
    "dcmdump",
    "dcmqridx",
    "dcmqrscp",
    "dcmsend",
    "dump2dcm",
    "echoscu",
    "findscu",
    "getscu",
    "movescu",
    "storescp",
    "storescu",
    "wlmscpfs",
)

# Program to the Debian package that brings it.
PACKAGES: dict[str, str] = {
    **dict.fromkeys(_DCMTK, "dcmtk"),
    "Orthanc": "orthanc",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "dciodvfy": "dicom3tools",
    "strace": "strace",
    "faketime": "faketime",
    "chromium": "chromium",
}

# Services that these packages would start by themselves, now and at the next boot.
_SERVICES = {"orthanc": ("orthanc.service",), "prometheus": ("prometheus.service",)}

# Daemons live outside the search path of ordinary users.
_EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
_POLICY = Path("/usr/sbin/policy-rc.d")


class MissingProgram(Exception):
    """A foreign program is not on this machine; the message says which package brings it."""


def _is_dcmtk(path: str) -> bool:
    """Tell DCMTK's programs from pynetdicom's console scripts, which carry the same names."""
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.startswith("$dcmtk:")


@cache
def find_program(name: str) -> Path | None:
    """Return where a program is, or None.

    :param name: a key of :data:`PACKAGES`
    """
    # pynetdicom's scripts lie beside the interpreter of a virtual environment.
    own = Path(sys.prefix) / "bin" if sys.prefix != sys.base_prefix else None
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    for folder in (*folders, *_EXTRA_FOLDERS):
        if Path(folder) == own:
            continue
        path = shutil.which(name, path=folder)
        if path is not None and (PACKAGES[name] != "dcmtk" or _is_dcmtk(path)):
            return Path(path)
    return None


def program(name: str) -> str:
    """Return the path of a program.

    :raises MissingProgram: when it is not on this machine
    """
    path = find_program(name)
    if path is None:
        raise MissingProgram(f"{name} is not installed (Debian package {PACKAGES[name]})")
    return str(path)


def missing() -> dict[str, str]:
    """The programs that are not on this machine, each with its package."""
    return {name: package for name, package in PACKAGES.items() if find_program(name) is None}


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep maintainer scripts from starting what they install (Debian policy 9.3.3.1, policy-rc.d)."""
    try:
        descriptor = os.open(_POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        # The machine has a policy of its own.
        yield
        return
    with os.fdopen(descriptor, "w") as policy:
        policy.write("#!/bin/sh\nexit 101\n")
    try:
        yield
    finally:
        _POLICY.unlink()


def _install(packages: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run(["apt-get", *options, "update"], env=environment, check=True)
    with _no_service_starts():
        subprocess.run(["apt-get", *options, "install", "--no-install-recommends", *packages], env=environment, check=True)
    services = [service for package in packages for service in _SERVICES.get(package, ())]
    if services and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "disable", *services], check=True)


def _can_make_environments() -> bool:
    return importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None


def main() -> int:
    """Install what is missing where that is possible, and say what stays missing."""
    absent = missing()
    packages = sorted(set(absent.values()))
    if not _can_make_environments() and Path(sys.executable).resolve().is_relative_to("/usr/bin"):
        # Debian's own interpreter comes without ensurepip.
        packages.append("python3-venv")
    if not packages:
        return 0
    if Path("/etc/debian_version").exists() and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {', '.join(packages)}", flush=True)
        try:
            _install(packages)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"could not install them: {error}", file=sys.stderr)
        find_program.cache_clear()
        absent = missing()
    for name, package in absent.items():
        print(f"{name} (Debian package {package}) is missing: its tests are skipped", file=sys.stderr)
    # With CI=true a skipped peer test is a failure, so there is no point in going on.
    return 1 if absent and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
