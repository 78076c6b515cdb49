"""Prometheus: scrapes targets for a while and answers queries; and promtool, which checks what is written for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.peers.peer import HOST
from tests.peers.programs import program
from tests.peers.running import Completed, Server, free_port, run_program, serving

_TIMEOUT = 10.0


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    :ivar url: its HTTP interface
    """

    url: str
    server: Server

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Answer an instant query with its samples: ``metric`` labels and ``value``.

        :raises httpx.HTTPStatusError: when the expression does not parse
        """
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=_TIMEOUT)
        return list(answer.raise_for_status().json()["data"]["result"])

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """The exemplars of the last hour: ``labels``, ``value`` and ``timestamp``."""
        now = time.time()
        asked: dict[str, str | float] = {"query": expression, "start": now - 3600, "end": now}
        answer = httpx.get(f"{self.url}/api/v1/query_exemplars", params=asked, timeout=_TIMEOUT)
        series = answer.raise_for_status().json()["data"]
        return [exemplar for one in series for exemplar in one["exemplars"]]

    def targets(self) -> list[dict[str, Any]]:
        """The targets that it scrapes, with the health and the last error of each."""
        answer = httpx.get(f"{self.url}/api/v1/targets", timeout=_TIMEOUT)
        return list(answer.raise_for_status().json()["data"]["activeTargets"])

    def wait_until_scraped(self, count: int = 1, deadline: float = 20.0) -> None:
        """Return once ``count`` targets were scraped with success."""
        self.server.wait_until(lambda: sum(target["health"] == "up" for target in self.targets()) >= count, deadline)


def scrape_job(
    targets: Sequence[str], *, name: str = "asyncdicom", path: str = "/metrics", interval: str = "1s"
) -> dict[str, Any]:
    """One entry of ``scrape_configs``.

    :param targets: ``host:port``
    """
    return {
        "job_name": name,
        "metrics_path": path,
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "static_configs": [{"targets": list(targets)}],
    }


@contextmanager
def prometheus(
    folder: Path, jobs: Sequence[Mapping[str, Any]], *, rule_files: Sequence[Path] = (), extra: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Prometheus on a free loopback port, its storage in a folder.

    :param jobs: entries of ``scrape_configs``, as :func:`scrape_job` makes them
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yml"
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(path) for path in rule_files],
                "scrape_configs": [dict(job) for job in jobs],
            },
            indent=2,
        )
    )
    port = free_port()
    argv = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        *extra,
    ]
    with serving(argv, log=folder / "prometheus.log") as server:
        url = f"http://{HOST}:{port}"
        server.wait_until(lambda: _ready(url))
        yield Prometheus(url, server)


def promtool(*words: str | Path, cwd: Path | None = None) -> Completed:
    """Run ``promtool`` to its end."""
    return run_program([program("promtool"), *words], cwd=cwd)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2.0).is_success
    except httpx.TransportError:
        return False
