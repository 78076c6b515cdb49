"""The dashboards: each panel explains itself, links lead somewhere, and queries ask for what is really exposed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from asyncdicom.cli.demo.cast import ROLES
from tests.deploy import dashboards
from tests.deploy.demo import playing
from tests.deploy.exposition import ROOT, exposed_names, full_metrics, metric_names
from tests.peers.fixtures import Starter
from tests.peers.prometheus import Prometheus, promtool, scrape_job

_GRAFANA = ROOT / "grafana"
_RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
# What Grafana 10 and later draw by themselves; "graph", "singlestat" and "table-old" are gone.
_KINDS = {"stat", "timeseries", "table", "state-timeline", "heatmap", "bargauge"}
_UNITS = {"short", "s", "ops", "bytes", "Bps", "percentunit"}
# Series that Prometheus makes of each scrape by itself.
_OF_PROMETHEUS = {"scrape_duration_seconds", "scrape_samples_scraped"}
_ALL = (".*",)
# Of the demo: one that is up and sends, one that is down, and one that falls silent.
_CHOSEN = ("ct1", "pt1", "cr2")
# Panels that have nothing to show while all is well, and why the demo does not change that.
_EMPTY_WHEN_WELL = {
    "Restarts": "the demo is not restarted",
    "Refused by status": "the demo is over with a failure when an instance is refused",
    "Full in": "the demo's folder shares its disk with others, which may free more than the demo fills",
}


@pytest.fixture(params=dashboards.PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Where a dashboard lies."""
    return Path(request.param)


@pytest.fixture
def dashboard(path: Path) -> dashboards.Dashboard:
    """A dashboard."""
    return dashboards.read(path)


def _recorded() -> set[str]:
    files = [yaml.safe_load(path.read_text()) for path in _RULES]
    return {rule["record"] for file in files for group in file["groups"] for rule in group["rules"] if "record" in rule}


def test_there_is_a_dashboard_for_each_question() -> None:
    wanted = {"asyncdicom-fleet", "asyncdicom-modality", "asyncdicom-storage", "asyncdicom-service", "asyncdicom-slo"}
    assert set(dashboards.by_uid()) == wanted
    assert len(dashboards.PATHS) == len(wanted), "two dashboards have one uid"
    assert len({dashboard["title"] for dashboard in dashboards.by_uid().values()}) == len(wanted)


def test_a_dashboard_is_written_so_that_two_versions_can_be_compared(path: Path) -> None:
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_a_dashboard_says_what_it_is_for(dashboard: dashboards.Dashboard) -> None:
    assert len(dashboard["description"]) > 40
    assert "asyncdicom" in dashboard["tags"]
    assert dashboard["schemaVersion"] >= 39
    assert "id" not in dashboard, "an id belongs to one Grafana"


def test_every_panel_has_a_title_a_description_and_a_unit(dashboard: dashboards.Dashboard) -> None:
    for panel in dashboards.panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in _UNITS, panel["title"]


def test_every_panel_is_of_a_kind_that_grafana_still_draws(dashboard: dashboards.Dashboard) -> None:
    assert {panel["type"] for panel in dashboards.panels(dashboard)} <= _KINDS


def test_ids_and_titles_are_unique_and_panels_do_not_overlap(dashboard: dashboards.Dashboard) -> None:
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


def test_a_panel_stands_below_the_heading_of_its_row(dashboard: dashboards.Dashboard) -> None:
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in dashboard["panels"]]
    assert places == sorted(places)
    assert dashboard["panels"][0]["type"] == "row"


def test_thresholds_climb_from_a_base(dashboard: dashboards.Dashboard) -> None:
    for panel in dashboards.panels(dashboard):
        base, *steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert base is None, panel["title"]
        assert steps == sorted(steps), panel["title"]


def test_what_is_set_for_one_series_belongs_to_one_that_is_there(dashboard: dashboards.Dashboard) -> None:
    for panel in dashboards.panels(dashboard):
        # A label in a legend may have any value.
        names = {re.sub(r"{{\w+}}", "*", target["legendFormat"]) for target in panel["targets"]}
        for step in panel.get("transformations", []):
            names |= set(step["options"].get("renameByName", {}).values()) | {"Value"}
        for override in panel["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            if matcher["id"] == "byName":
                assert any(fnmatch(matcher["options"], name) for name in names), f"{panel['title']}: {matcher['options']}"
            else:
                pattern = matcher["options"].strip("/")
                assert any(re.search(pattern, name) for name in names), f"{panel['title']}: {pattern}"


def test_a_dashboard_works_with_any_data_source(dashboard: dashboards.Dashboard) -> None:
    assert list(dashboards.variables(dashboard))[:3] == ["datasource", "job", "instance"]
    for panel in dashboards.panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]


def test_every_dashboard_leads_to_every_other_with_what_is_chosen(dashboard: dashboards.Dashboard) -> None:
    (link,) = dashboard["links"]
    assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
    assert all(set(link["tags"]) <= set(other["tags"]) for other in dashboards.by_uid().values())


def test_every_link_leads_to_a_dashboard_and_sets_variables_that_it_has(dashboard: dashboards.Dashboard) -> None:
    for panel in dashboards.panels(dashboard):
        for url in dashboards.data_links(panel):
            found = re.fullmatch(r"/d/([\w-]+)/[\w-]+\?(.+)", url)
            assert found, f"{panel['title']}: {url}"
            target = dashboards.by_uid()[found[1]]
            for part in found[2].split("&"):
                if kept := re.fullmatch(r"\$\{(\w+):queryparam\}", part):
                    assert kept[1] in dashboards.variables(dashboard), f"{panel['title']}: {part}"
                    assert kept[1] in dashboards.variables(target), f"{panel['title']}: {part}"
                elif given := re.fullmatch(r"var-(\w+)=(.+)", part):
                    assert given[1] in dashboards.variables(target), f"{panel['title']}: {part}"
                    label = re.fullmatch(r"\$\{__field\.labels\.(\w+)\}", given[2])
                    assert given[2] == "${__value.raw}" or (label and label[1] in dashboards.grouped_by(panel)), part
                else:
                    assert part == "${__url_time_range}", f"{panel['title']}: {part}"


def test_the_fleet_leads_to_one_modality() -> None:
    fleet = dashboards.by_uid()["asyncdicom-fleet"]
    leading = {panel["title"] for panel in dashboards.panels(fleet) for url in dashboards.data_links(panel) if "var-mod" in url}
    assert {"Modalities", "Modalities that were down", "Slowest modalities"} <= leading


def test_every_query_asks_for_exposed_and_recorded_metrics_alone(dashboard: dashboards.Dashboard, tmp_path: Path) -> None:
    known = exposed_names(full_metrics(tmp_path)) | _recorded() | _OF_PROMETHEUS
    for title, expression in dashboards.queries(dashboard):
        names = metric_names(expression)
        assert names, title
        assert names <= known, f"{title}: {names - known}"
    for variable in dashboards.variables(dashboard).values():
        if variable["type"] == "query":
            inside = variable["definition"].removeprefix("label_values(").rpartition(",")[0]
            assert metric_names(inside) <= known, variable["name"]
            assert variable["query"]["query"] == variable["definition"]


def test_every_metric_is_on_a_dashboard(tmp_path: Path) -> None:
    ours = {name for name in exposed_names(full_metrics(tmp_path)) if name.startswith("asyncdicom_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    asked = {
        re.sub(r"_bucket$", "", name)
        for dashboard in dashboards.by_uid().values()
        for _, expression in dashboards.queries(dashboard)
        for name in metric_names(expression)
    }
    assert families <= asked, families - asked


def test_every_variable_of_a_query_is_defined(dashboard: dashboards.Dashboard) -> None:
    for title, expression in dashboards.queries(dashboard):
        assert "$" not in expression, title


@pytest.mark.peer("promtool")
def test_every_query_parses(dashboard: dashboards.Dashboard, tmp_path: Path) -> None:
    asked = enumerate(dashboards.queries(dashboard))
    rules = [{"record": f"query:{number}", "expr": expression} for number, (_, expression) in asked]
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


def test_grafana_is_told_how_often_is_scraped() -> None:
    source = yaml.safe_load((_GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def _asked(dashboard: dashboards.Dashboard) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where each query stands, and the query for each of the modalities that it is to have an answer for one of."""
    each = [dashboards.queries(dashboard, modality=name) for name in (_ALL if _has_all(dashboard) else _CHOSEN)]
    for found in zip(*each, strict=True):
        yield found[0][0], tuple(expression for _, expression in found)


def _has_all(dashboard: dashboards.Dashboard) -> bool:
    modality = dashboards.variables(dashboard).get("modality")
    return modality is None or modality["includeAll"]


def _hurried(folder: Path) -> Iterator[Path]:
    """The rules, each evaluated every second rather than every few minutes."""
    folder.mkdir()
    for path in _RULES:
        rules: dict[str, Any] = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        hurried = folder / path.name
        hurried.write_text(yaml.safe_dump(rules))
        yield hurried


@pytest.mark.peer("prometheus")
@pytest.mark.timeout(120)
def test_prometheus_answers_every_query_of_every_dashboard(start_prometheus: Starter[Prometheus], tmp_path: Path) -> None:
    with playing(tmp_path / "demo") as address:
        prometheus = start_prometheus(
            jobs=[scrape_job([address])],
            rule_files=list(_hurried(tmp_path / "rules")),
            extra=["--enable-feature=exemplar-storage"],
        )
        prometheus.wait_until_scraped()
        unanswered = [
            (dashboard["title"], title, expressions)
            for dashboard in dashboards.by_uid().values()
            for title, expressions in _asked(dashboard)
        ]

        def all_answered() -> bool:
            nonlocal unanswered
            # A query that does not parse raises. What is asked once more is what had no data yet: rates need samples.
            unanswered = [asked for asked in unanswered if not any(map(prometheus.query, asked[2]))]
            return all(title in _EMPTY_WHEN_WELL for _, title, _ in unanswered)

        try:
            prometheus.server.wait_until(all_answered, 60.0)
        finally:
            left = [asked for asked in unanswered if asked[1] not in _EMPTY_WHEN_WELL]
            assert not left, "\n".join(f"{board}, {title}: {asked[0]}" for board, title, asked in left)
        named = {
            exemplar["labels"]["modality"] for exemplar in prometheus.exemplars("asyncdicom_operation_duration_seconds_bucket")
        }
        assert named & {role.name for role in ROLES}
