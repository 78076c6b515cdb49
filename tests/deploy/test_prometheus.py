"""Scrape configurations, recording rules and alerts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.exposition import ROOT, exposed_names, full_metrics, metric_names
from tests.peers.prometheus import promtool

_FOLDER = ROOT / "deploy/prometheus"
_RULE_FILES = sorted((_FOLDER / "rules").glob("*.yml"))
_RULES: list[dict[str, Any]] = [
    rule for path in _RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
]
_ALERTS = [rule for rule in _RULES if "alert" in rule]


@pytest.mark.peer("promtool")
@pytest.mark.parametrize("config", ["prometheus.yml", "prometheus-probe.yml"])
def test_promtool_accepts_the_configuration_and_its_rules(config: str) -> None:
    checked = promtool("check", "config", "--lint=all", "--lint-fatal", _FOLDER / config)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.peer("promtool")
@pytest.mark.parametrize("tests", sorted((_FOLDER / "tests").glob("*.yml")), ids=lambda path: str(path.stem))
def test_rules_record_and_alert_as_they_should_and_only_then(tests: Path) -> None:
    tested = promtool("test", "rules", tests.name, cwd=tests.parent)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_rule_of_the_service_level_objectives_has_a_test() -> None:
    groups = yaml.safe_load((_FOLDER / "rules/slo.yml").read_text())["groups"]
    ours = {rule.get("record") or rule["alert"] for group in groups for rule in group["rules"]}
    tested = set()
    for test in yaml.safe_load((_FOLDER / "tests/slo.yml").read_text())["tests"]:
        tested |= {name for asked in test.get("promql_expr_test", ()) for name in metric_names(asked["expr"])}
        tested |= {asked["alertname"] for asked in test.get("alert_rule_test", ()) if asked["exp_alerts"]}
    assert ours <= tested, ours - tested


def test_rules_read_exposed_and_recorded_metrics_alone(tmp_path: Path) -> None:
    known = exposed_names(full_metrics(tmp_path)) | {rule["record"] for rule in _RULES if "record" in rule}
    for rule in _RULES:
        names = metric_names(rule["expr"])
        assert names or rule["record"].endswith(":objective"), rule
        assert names <= known, f"{rule}: {names - known}"


@pytest.mark.parametrize("alert", _ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["for"]
    slug = re.sub(r"(?<!^)(?=[A-Z])", "-", alert["alert"]).lower()
    assert annotations["runbook_url"] == f"docs/runbooks/{slug}.md"
    runbook = (ROOT / annotations["runbook_url"]).read_text()
    assert runbook.startswith(f"# {alert['alert']}\n")
    for heading in ("## What it means", "## What to do"):
        assert heading in runbook, slug


def test_every_runbook_belongs_to_an_alert() -> None:
    slugs = {Path(alert["annotations"]["runbook_url"]).name for alert in _ALERTS}
    assert {path.name for path in (ROOT / "docs/runbooks").glob("*.md")} == slugs
