"""The systemd unit."""

from __future__ import annotations

import configparser
import shutil
import sys
from pathlib import Path

import pytest

from asyncdicom.service.config import load
from tests.deploy.exposition import ROOT
from tests.peers.running import run_program

_UNIT = ROOT / "deploy/systemd/asyncdicom.service"
# After the drain, what is left is aborted within this many seconds.
_ABORT_SECONDS = 5.0


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(_UNIT)
    return parser["Service"]


def test_systemd_has_the_patience_that_a_drain_needs(service: configparser.SectionProxy) -> None:
    config = load(ROOT / "deploy/asyncdicom.toml")
    assert config.scp is not None
    assert int(service["TimeoutStopSec"]) > config.scp.drain_timeout + _ABORT_SECONDS


def test_the_unit_can_write_nothing_but_its_state(service: configparser.SectionProxy) -> None:
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["User"] not in ("", "root")
    assert "ReadWritePaths" not in service
    config = load(ROOT / "deploy/asyncdicom.toml")
    state = Path("/var/lib") / service["StateDirectory"]
    assert config.archive_directory is not None
    assert config.archive_directory.is_relative_to(state)
    assert Path((config.index or "").removeprefix("sqlite:")).is_relative_to(state)


def test_a_wrong_configuration_is_not_started_again_and_again(service: configparser.SectionProxy) -> None:
    # The exit status of usage and configuration errors.
    assert service["RestartPreventExitStatus"] == "2"
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / _UNIT.name
    # It looks for the program and the user, which are not on this machine.
    text = _UNIT.read_text().replace("/opt/asyncdicom/bin/asyncdicom", sys.executable)
    text = text.replace("User=asyncdicom", "User=daemon").replace("Group=asyncdicom", "Group=daemon")
    unit.write_text(text)
    checked = run_program(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit])
    assert checked.returncode == 0, checked.stderr
    assert "asyncdicom.service" not in checked.stderr, checked.stderr
