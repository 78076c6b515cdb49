"""The dashboards as they are read by Grafana: their panels, queries, variables and links."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.deploy.exposition import ROOT

FOLDER = ROOT / "grafana/dashboards"
PATHS = sorted(FOLDER.glob("*.json"))
# What Grafana fills in by itself.
BUILT_IN = {"$__rate_interval": "1m", "$__range": "1h"}

Dashboard = dict[str, Any]
Panel = dict[str, Any]


@cache
def read(path: Path) -> Dashboard:
    """A dashboard by the file that it lies in."""
    return dict(json.loads(path.read_text()))


def by_uid() -> dict[str, Dashboard]:
    """Every dashboard."""
    return {read(path)["uid"]: read(path) for path in PATHS}


def panels(dashboard: Dashboard) -> list[Panel]:
    """What shows something; rows do not."""
    nested = [inner for panel in dashboard["panels"] for inner in panel.get("panels", [])]
    return [panel for panel in [*dashboard["panels"], *nested] if panel["type"] != "row"]


def variables(dashboard: Dashboard) -> dict[str, dict[str, Any]]:
    """The variables of a dashboard by name, in their order."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def filled_in(expression: str, dashboard: Dashboard, **values: str) -> str:
    """A query with its variables filled in, as Grafana does it when everything is chosen.

    :param values: of variables of which one value is chosen
    """
    for name, value in BUILT_IN.items():
        expression = expression.replace(name, value)
    for name in sorted(variables(dashboard), key=len, reverse=True):
        expression = expression.replace(f"${name}", values.get(name, ".*"))
    return expression


def queries(dashboard: Dashboard, **values: str) -> list[tuple[str, str]]:
    """Where each query stands, and the query with its variables filled in."""
    asked = [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]
    asked += [(entry["name"], entry["expr"]) for entry in dashboard["annotations"]["list"] if "expr" in entry]
    return [(title, filled_in(expression, dashboard, **values)) for title, expression in asked]


def data_links(panel: Panel) -> Iterator[str]:
    """Where a click on something in a panel leads."""
    settings = panel["fieldConfig"]
    for link in settings["defaults"].get("links", []):
        yield link["url"]
    for override in settings["overrides"]:
        for wanted in override["properties"]:
            if wanted["id"] == "links":
                yield from (link["url"] for link in wanted["value"])


def grouped_by(panel: Panel) -> set[str]:
    """The labels that the series of a panel have for certain: those of its legends."""
    return {label for target in panel["targets"] for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
