"""Node.js and the packages in JavaScript that tests talk to: where they are, how to install them.

``python -m tests.peers.node`` installs what is missing: Node.js and npm on Debian as root, then the packages that
``tests/peers/javascript/package-lock.json`` names, into the folder ``.node``. Elsewhere it says what stays missing.
This file stands on the standard library alone, because it runs before the virtual environment exists.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.peers.programs import MissingProgram
from tests.peers.programs import _install as install_from_debian

_ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(__file__).resolve().parent / "javascript"
# Outside of what belongs to the repository: hidden folders are made by tools.
_FOLDER = _ROOT / ".node"
_MANIFESTS = ("package.json", "package-lock.json")
# npm tries a registry that does not answer for minutes.
_TIMEOUT = 300.0

# Program to the Debian package that brings it.
_DEBIAN = {"node": "nodejs", "npm": "npm"}


def _stamp() -> str:
    """What stands for the packages as they are locked now."""
    return hashlib.sha256(b"\0".join((SCRIPTS / name).read_bytes() for name in _MANIFESTS)).hexdigest()


def _are_packages_installed() -> bool:
    stamp = _FOLDER / "stamp"
    return stamp.exists() and stamp.read_text() == _stamp()


def node() -> tuple[str, dict[str, str]]:
    """Return the path of Node.js, and the variables with which it finds the packages.

    :raises MissingProgram: when it or the packages are not on this machine
    """
    path = shutil.which("node")
    if path is None:
        raise MissingProgram(f"node is not installed (Debian package {_DEBIAN['node']})")
    if not _are_packages_installed():
        raise MissingProgram("the packages of tests/peers/javascript are not installed (make peers)")
    return path, {"NODE_PATH": str(_FOLDER / "node_modules")}


def package(name: str) -> Path:
    """Return the folder of a package.

    :raises MissingProgram: when the packages are not on this machine
    """
    if not _are_packages_installed():
        raise MissingProgram("the packages of tests/peers/javascript are not installed (make peers)")
    return _FOLDER / "node_modules" / name


def _install_packages(npm: str) -> None:
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / "stamp").unlink(missing_ok=True)
    for name in _MANIFESTS:
        shutil.copyfile(SCRIPTS / name, _FOLDER / name)
    # Install scripts of packages are not run: none of these needs its own.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    made = subprocess.run(
        [npm, "ci", *options], cwd=_FOLDER, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
    )
    if made.returncode != 0:
        raise OSError(f"npm ci ended with {made.returncode}: {(made.stdout + made.stderr)[-2000:]}")
    (_FOLDER / "stamp").write_text(_stamp())


def main() -> int:
    """Install what is missing where that is possible, and say what stays missing."""
    absent = [program for program in _DEBIAN if shutil.which(program) is None]
    if absent and Path("/etc/debian_version").exists() and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {', '.join(_DEBIAN[program] for program in absent)}", flush=True)
        try:
            install_from_debian([_DEBIAN[program] for program in absent])
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"could not install them: {error}", file=sys.stderr)
    npm = shutil.which("npm")
    if npm is not None and not _are_packages_installed():
        print("installing the packages of tests/peers/javascript", flush=True)
        try:
            _install_packages(npm)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"could not install them: {error}", file=sys.stderr)
    try:
        node()
    except MissingProgram as error:
        print(f"{error}: its tests are skipped", file=sys.stderr)
        # With CI=true a skipped peer test is a failure, so there is no point in going on.
        return 1 if os.environ.get("CI") == "true" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
