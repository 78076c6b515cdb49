"""The dashboards: each panel explains itself, and each query asks for something that is really exposed."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.exposition import ROOT, exercise, exposed_names, full_metrics, full_states, metric_names
from tests.peers.fixtures import Starter
from tests.peers.prometheus import Prometheus, promtool, scrape_job

_GRAFANA = ROOT / "grafana"
_DASHBOARDS = sorted((_GRAFANA / "dashboards").glob("*.json"))
_VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*", "$instance": ".*", "$modality": ".*"}


@cache
def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    nested = [inner for panel in dashboard["panels"] for inner in panel.get("panels", [])]
    return [panel for panel in [*dashboard["panels"], *nested] if panel["type"] != "row"]


def _filled_in(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Where each query stands, and the query with its variables filled in."""
    queries = [(panel["title"], _filled_in(target["expr"])) for panel in _panels(dashboard) for target in panel["targets"]]
    annotations = [entry for entry in dashboard["annotations"]["list"] if "expr" in entry]
    return [*queries, *((entry["name"], _filled_in(entry["expr"])) for entry in annotations)]


@pytest.fixture(params=_DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _read(request.param)


def test_there_is_a_dashboard() -> None:
    assert _DASHBOARDS


def test_every_panel_has_a_title_a_description_and_a_unit(dashboard: dict[str, Any]) -> None:
    for panel in _panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_ids_and_titles_are_unique_and_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24, panel["title"]
        cells = {
            (position["x"] + column, position["y"] + line) for column in range(position["w"]) for line in range(position["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_a_dashboard_works_with_any_data_source(dashboard: dict[str, Any]) -> None:
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "modality"]
    for panel in _panels(dashboard):
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]


def test_every_query_asks_for_exposed_metrics_alone(dashboard: dict[str, Any], tmp_path: Path) -> None:
    known = exposed_names(full_metrics(tmp_path))
    for title, expression in _queries(dashboard):
        names = metric_names(expression)
        assert names, title
        assert names <= known, f"{title}: {names - known}"
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            inside = variable["definition"].removeprefix("label_values(").rpartition(",")[0]
            assert metric_names(inside) <= known, variable["name"]


def test_every_variable_of_a_query_is_defined(dashboard: dict[str, Any]) -> None:
    for title, expression in _queries(dashboard):
        assert "$" not in expression, title


@pytest.mark.peer("promtool")
def test_every_query_parses(dashboard: dict[str, Any], tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": expr} for number, (_, expr) in enumerate(_queries(dashboard))]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_provisioning_names_the_folder_that_compose_mounts() -> None:
    provider = yaml.safe_load((_GRAFANA / "provisioning/dashboards/asyncdicom.yaml").read_text())["providers"][0]
    compose = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    source = yaml.safe_load((_GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"].removeprefix("http://").split(":")[0] in compose["services"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The metrics of a service that was used a little, served as it serves them."""
    states = full_states()
    metrics = full_metrics(tmp_path, states)

    class Exposition(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exercise(metrics, states)
            body, content_type = metrics.render(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the scrapes are not of interest."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exposition) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.peer("prometheus")
def test_prometheus_answers_every_query_of_every_dashboard(start_prometheus: Starter[Prometheus], service: str) -> None:
    prometheus = start_prometheus(jobs=[scrape_job([service])])
    prometheus.wait_until_scraped()
    # Rates need two samples.
    prometheus.server.wait_until(lambda: prometheus.query("count_over_time(asyncdicom_build_info[1m]) >= 3"))
    for path in _DASHBOARDS:
        for title, expression in _queries(_read(path)):
            answer = prometheus.query(expression)
            # The lateness of the loop is not sampled here, and nothing restarted.
            if title not in ("Lateness of the event loop", "Restarts", "Down now", "Refused instances by status"):
                assert answer, f"{title}: {expression}"
