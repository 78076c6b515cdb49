"""The dashboards against Grafana's own types: what Grafana does not know it drops without a word, and so does a round trip."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import dashboards
from tests.deploy.exposition import ROOT

if os.environ.get("CI") != "true":
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed (requirements.lock)")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

# Known to the editors of Grafana, and not to its types.
_OF_THE_EDITORS = {".annotations.list[].titleFormat", ".annotations.list[].textFormat", ".templating.list[].definition"}


def _dropped(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """What is in the one and not in the other."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from _dropped(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for one, other in zip(given, kept, strict=True):
            yield from _dropped(one, other, f"{path}[]")
    elif given != kept:
        yield path


def _read_by_grafana(dashboard: dashboards.Dashboard) -> set[str]:
    """What Grafana's types drop of a dashboard."""
    register_default_plugins()
    kept = json.loads(json.dumps(Dashboard.from_json(copy.deepcopy(dashboard)), cls=JSONEncoder))
    return set(_dropped(dashboard, kept)) - _OF_THE_EDITORS


@pytest.mark.parametrize("path", dashboards.PATHS, ids=lambda path: str(path.stem))
def test_grafana_knows_every_setting_of_a_dashboard(path: Path) -> None:
    assert _read_by_grafana(dashboards.read(path)) == set()


@pytest.mark.parametrize("path", dashboards.PATHS, ids=lambda path: str(path.stem))
def test_a_setting_that_grafana_does_not_know_is_found(path: Path) -> None:
    dashboard = copy.deepcopy(dashboards.read(path))
    panel = dashboards.panels(dashboard)[0]
    panel["options"]["colourMode"] = "background"
    panel["targets"][0]["expression"] = "up"
    assert _read_by_grafana(dashboard) == {".panels[].options.colourMode", ".panels[].targets[].expression"}


def test_the_types_are_those_of_the_grafana_that_is_deployed() -> None:
    image = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())["services"]["grafana"]["image"]
    (version,) = re.findall(r"grafana-foundation-sdk==\d+!(\d+\.\d+)\.", (ROOT / "pyproject.toml").read_text())
    assert image.partition(":")[2].startswith(version)
