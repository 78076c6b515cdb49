"""The packages in JavaScript: pinned, installed by the test command itself, and missed by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from tests.peers import node
from tests.peers.programs import MissingProgram
from tests.peers.running import run_program


def test_every_package_in_javascript_is_pinned_by_its_hash_and_names_no_origin() -> None:
    wanted = json.loads((node.SCRIPTS / "package.json").read_text())["dependencies"]
    text = (node.SCRIPTS / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    assert locked.pop("")["dependencies"] == wanted
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(package["integrity"].startswith("sha512-") for package in locked.values())
    assert '"resolved"' not in text


def test_a_missing_node_and_missing_packages_are_told_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(node, "_FOLDER", tmp_path)
        patch.setattr("shutil.which", lambda name: f"/bin/{name}")
        with pytest.raises(MissingProgram, match="make peers"):
            node.node()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgram, match="Debian package nodejs"):
        node.node()


@pytest.mark.parametrize("ci", ["true", ""])
def test_packages_that_cannot_be_installed_are_an_error_where_nothing_may_be_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], ci: str
) -> None:
    for name, body in (("node", "exit 0"), ("npm", "echo no network >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(node, "_FOLDER", tmp_path / "packages")
    assert node.main() == (1 if ci else 0)
    said = capsys.readouterr().err
    assert "npm ci ended with 1: no network" in said
    assert "its tests are skipped" in said


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/etc/debian_version").exists(), reason="installs on Debian as root alone")
def test_what_is_missing_of_node_is_asked_of_debian(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "apt-get").chmod(0o755)
    installed = run_program([sys.executable, "-m", "tests.peers.node"], cwd=ROOT, env={"PATH": str(tmp_path), "CI": "true"})
    assert "install --no-install-recommends nodejs npm" in asked.read_text()
    # The program that stands in for apt-get installs nothing, so both are still missing.
    assert installed.returncode == 1
    assert "node is not installed (Debian package nodejs)" in installed.stderr
