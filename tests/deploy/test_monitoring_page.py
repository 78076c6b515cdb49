"""The page for newcomers, followed to the letter: its files are written, its commands run, its dashboard has data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy import dashboards
from tests.deploy.exposition import ROOT, exposed_names, full_metrics, metric_names, watching_metrics
from tests.peers.prometheus import Prometheus
from tests.peers.running import Server, free_port, run_program, serving

pytestmark = pytest.mark.timeout(180)

_PAGE = (ROOT / "docs/monitoring.md").read_text()
# What a clone has, as far as the page uses it.
_CLONE = ("asyncdicom", "deploy", "grafana", "pyproject.toml", "README.md", "LICENSE")
_COUNT = 20
# What would collide with other tests, and what they have no time for.
_EVERY = ("every = 30.0", "every = 1.0")
_SCRAPE = ("_interval: 15s", "_interval: 1s")
_REFRESH = ("refresh_interval: 1m", "refresh_interval: 1s")


def _blocks(pattern: str) -> list[str]:
    return [str(found) for found in re.findall(pattern, _PAGE, re.MULTILINE | re.DOTALL)]


def _file(name: str) -> str:
    """What is to be written, by the name that stands before it."""
    (text,) = _blocks(rf"^`{re.escape(name)}`:\n\n```\w+\n(.*?)```$")
    return text


class Newcomer:
    """Somebody with a clone of the project, a shell and this page.

    :param folder: the clone
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.web, self.prometheus = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        # What `pip install` would fetch is lent by the environment of the tests: nothing comes over the network.
        self._env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_IGNORE_INSTALLED": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
        }

    def write(self, name: str, *replaced: tuple[str, str]) -> None:
        """Write a file as the page has it, but for ports and times."""
        (self.folder / name).write_text(self._told(_file(name), *replaced))

    def run(self, block: str) -> str:
        """Run a block of commands to its end, and return what it said."""
        done = run_program(["sh", "-e", "-c", self._told(block)], 120.0, env=self._env, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def keep_running(self, command: str, log: str, serves: Callable[[], object]) -> Iterator[Server]:
        """Run a command until the end of the block."""
        words = shlex.split(self._told(command))
        with serving(words, log=self.folder / log, env=self._env, cwd=self.folder) as server:
            server.wait_until(serves)
            yield server

    def _told(self, text: str, *replaced: tuple[str, str]) -> str:
        for before, after in (("127.0.0.1:8080", self.web), ("127.0.0.1:9090", self.prometheus), *replaced):
            text = text.replace(before, after)
        return text


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.get(url, timeout=2.0).is_success
        except httpx.TransportError:
            return False

    return ask


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    """Somebody with a fresh clone."""
    folder = tmp_path / "asyncdicom"
    folder.mkdir()
    for name in _CLONE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return Newcomer(folder)


@pytest.mark.peer("prometheus", "promtool")
def test_the_page_leads_from_nothing_to_a_dashboard_with_data(newcomer: Newcomer) -> None:
    install, check, serve, prometheus, ask = _blocks(r"^```sh\n(.*?)```$")
    (simulate,) = _blocks(r"^```console\n\$ (.*?)\n```$")
    newcomer.run(install)
    newcomer.write("asyncdicom.toml", ("port = 8080", f"port = {newcomer.web.partition(':')[2]}"), _EVERY)
    newcomer.write("prometheus.yml", _SCRAPE)
    _add_job(newcomer)
    inventory = newcomer.folder / "modalities.csv"
    prometheus = f"{prometheus.strip()} --storage.tsdb.path=series --web.listen-address={newcomer.prometheus}"
    with newcomer.keep_running(
        simulate, "simulate.log", lambda: inventory.exists() and inventory.read_text().count("\n") > _COUNT
    ):
        assert inventory.read_text().splitlines()[0] == _file("modalities.csv").splitlines()[0]
        newcomer.run(check)
        with newcomer.keep_running(prometheus, "prometheus.log", _answers(f"http://{newcomer.prometheus}/-/ready")) as server:
            with newcomer.keep_running(serve, "serve.log", _answers(f"http://{newcomer.web}/-/ready")):
                _look(newcomer, Prometheus(f"http://{newcomer.prometheus}", server), ask)


def _add_job(newcomer: Newcomer) -> None:
    """Add the job for who wants Prometheus to ask."""
    newcomer.write("probe.yml", _REFRESH)
    path = newcomer.folder / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    (job,) = yaml.safe_load((newcomer.folder / "probe.yml").read_text())["scrape_configs"]
    config["scrape_configs"].append({**job, "scrape_interval": "3s"})
    path.write_text(yaml.safe_dump(config))


def _look(newcomer: Newcomer, prometheus: Prometheus, ask: str) -> None:
    """What the newcomer looks at in the end."""
    up = "asyncdicom_modality_up >= 0"
    prometheus.server.wait_until(lambda: len(prometheus.query(up)) == _COUNT, 60.0)
    said = newcomer.run(ask)
    # Two are silent, and one refuses.
    assert len(re.findall(r"^asyncdicom_modality_up\{.*=> 1 @", said, re.MULTILINE)) == _COUNT - 3
    prometheus.server.wait_until(lambda: len(prometheus.query("probe_success == 1")) == _COUNT - 3, 60.0)
    prometheus.server.wait_until(lambda: prometheus.query("instance:asyncdicom_modalities_up:count > 0"), 60.0)

    overview = dashboards.by_uid()["asyncdicom-fleet"]
    storage = exposed_names(full_metrics(newcomer.folder)) - exposed_names(watching_metrics())
    asked = [(title, query) for title, query in dashboards.queries(overview) if not metric_names(query) & storage]
    asked = [(title, query) for title, query in asked if title != "Restarts"]
    assert len(asked) > 20

    def all_answered() -> bool:
        nonlocal asked
        asked = [(title, query) for title, query in asked if not prometheus.query(query)]
        return not asked

    try:
        prometheus.server.wait_until(all_answered, 30.0)
    finally:
        assert not asked, "\n".join(f"{title}: {query}" for title, query in asked)


def test_the_configuration_for_watching_takes_five_lines() -> None:
    assert len(_file("asyncdicom.toml").splitlines()) <= 6


def test_the_page_names_every_dashboard() -> None:
    for dashboard in dashboards.by_uid().values():
        assert f"| {dashboard['title']} |" in _PAGE


def test_what_the_page_scrapes_is_what_is_deployed() -> None:
    deployed = yaml.safe_load((ROOT / "deploy/prometheus/prometheus-probe.yml").read_text())["scrape_configs"]
    (ours,) = yaml.safe_load(_file("probe.yml"))["scrape_configs"]
    (theirs,) = [job for job in deployed if job["job_name"] == ours["job_name"]]
    assert {key: ours[key] for key in ("metrics_path", "params")} == {key: theirs[key] for key in ("metrics_path", "params")}
    addressed = yaml.safe_load(yaml.safe_dump(theirs["relabel_configs"]).replace("asyncdicom:8080", "127.0.0.1:8080"))
    assert all(step in addressed for step in ours["relabel_configs"])
