"""Setting up: the locks are whole, and say nothing of where packages come from."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT
from tests.peers.programs import PACKAGES
from tests.peers.running import run_program

_LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-core.lock"]
_PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _locked(path: Path) -> dict[str, str]:
    """Each package with its version."""
    found = re.findall(r"^([a-zA-Z0-9._-]+)==([^ ;\\]+)", path.read_text(), re.MULTILINE)
    return {_normal(name): version for name, version in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.split(r"[\[<>=!~;\s]", requirement, maxsplit=1)[0]) for requirement in requirements} - {"asyncdicom"}


@pytest.mark.parametrize("lock", _LOCKS, ids=lambda lock: lock.stem)
def test_every_package_has_hashes_and_no_origin(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|(?<!\w)@", text)
    for block in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9._-]+==", block), block.partition("\n")[0]
        assert "--hash=sha256:" in block, block.partition("\n")[0]


def test_the_locks_have_what_the_project_asks_for() -> None:
    project, groups = _PROJECT["project"], _PROJECT["dependency-groups"]
    extras = project["optional-dependencies"]
    core = _names([*project["dependencies"], *extras["testing"], *groups["build"], *_PROJECT["build-system"]["requires"]])
    everything = core | _names([requirement for extra in extras.values() for requirement in extra]) | _names(groups["dev"])
    assert core <= _locked(ROOT / "requirements-core.lock").keys()
    assert everything <= _locked(ROOT / "requirements.lock").keys()


def test_the_core_is_locked_at_the_versions_that_are_tested() -> None:
    core, everything = (_locked(ROOT / name) for name in ("requirements-core.lock", "requirements.lock"))
    assert core.items() <= everything.items()


def test_make_without_a_target_says_what_can_be_made() -> None:
    said = run_program(["make", "--no-print-directory"], cwd=ROOT).stdout
    for target in ("demo", "test", "bench", "soak"):
        assert f"make {target}" in said


def test_make_says_so_when_there_is_no_python_that_is_new_enough(tmp_path: Path) -> None:
    for name in ("test", "echo", "sh", "make"):
        (tmp_path / name).symlink_to(next(path for path in (Path("/usr/bin", name), Path("/bin", name)) if path.exists()))
    made = run_program(["make", "peers"], cwd=ROOT, env={"PATH": str(tmp_path)})
    assert made.returncode != 0
    assert "a Python of 3.11 or newer is needed" in made.stderr


def test_the_check_before_landing_runs_what_the_readme_runs() -> None:
    check = ROOT / ".ci/run"
    assert os.access(check, os.X_OK)
    text = check.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert "export CI=true" in text
    assert "make test" in text


def test_every_peer_that_a_test_names_can_be_installed() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for names in re.findall(r"mark\.peer\(([^)]*)\)", path.read_text()):
            for name in re.findall(r'"([^"]+)"', names):
                assert name in PACKAGES, f"{path.relative_to(ROOT)}: {name}"
