"""The example configurations, the image and the composition of services."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from asyncdicom.service.config import load
from tests.deploy.exposition import ROOT

_DOCKER = ROOT / "deploy/docker"
_EXAMPLES = [ROOT / "deploy/asyncdicom.toml", _DOCKER / "asyncdicom.toml"]


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda path: str(path.parent.name))
def test_the_example_configurations_have_no_mistakes(example: Path) -> None:
    config = load(example)
    assert config.modality
    assert config.sweep
    assert config.web is not None


def test_the_composition_publishes_pages_on_this_machine_alone() -> None:
    services = yaml.safe_load((_DOCKER / "compose.yaml").read_text())["services"]
    published = {port for service in services.values() for port in service["ports"]}
    config = load(_DOCKER / "asyncdicom.toml")
    assert config.scp is not None
    assert config.web is not None
    dicom = f"{config.scp.port}:{config.scp.port}"
    assert dicom in published
    assert f"127.0.0.1:{config.web.port}:{config.web.port}" in published
    assert all(port.startswith("127.0.0.1:") for port in published - {dicom})


def test_the_composition_waits_for_the_drain_and_mounts_what_is_there() -> None:
    service = yaml.safe_load((_DOCKER / "compose.yaml").read_text())["services"]["asyncdicom"]
    config = load(_DOCKER / "asyncdicom.toml")
    assert config.scp is not None
    assert int(service["stop_grace_period"].removesuffix("s")) > config.scp.drain_timeout + 5.0
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (_DOCKER / source).exists(), source


def test_the_image_runs_unprivileged_and_is_asked_for_its_health() -> None:
    dockerfile = (_DOCKER / "Dockerfile").read_text()
    stages = dockerfile.split("FROM ")[1:]
    assert len(stages) == 2
    assert re.search(r"^USER asyncdicom$", stages[-1], re.MULTILINE)
    assert "HEALTHCHECK" in stages[-1]
    assert "/-/healthy" in stages[-1]
    assert "--require-hashes" in stages[0]


def test_the_image_gets_all_that_it_copies() -> None:
    ignore = (_DOCKER / "Dockerfile.dockerignore").read_text().split()
    build = (_DOCKER / "Dockerfile").read_text().split("FROM ")[1]
    copied = {word.removeprefix("./") for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE) for word in line.split()[:-1]}
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignore, name


def test_the_image_and_the_project_agree_on_the_python() -> None:
    minimum = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for version in re.findall(r"FROM python:(\d+\.\d+)", (_DOCKER / "Dockerfile").read_text()):
        assert [int(part) for part in version.split(".")] >= [int(part) for part in minimum.split(".")]
