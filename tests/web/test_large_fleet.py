"""Pages of thousands of modalities are made in a few milliseconds, also while every one of them changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import httpx
import pytest

from asyncdicom.modality import Modality
from asyncdicom.monitor.state import KEPT_OUTCOMES, Change, Failure, Past, Sample
from asyncdicom.outcome import Outcome, Reason

from .conftest import KnownService, Serve

MODALITIES = 5_000
REQUESTS = 11
# Milliseconds of processor time, those of the client included: what others do on this machine does not count.
MOST = 50.0


@pytest.fixture(scope="module")
def large() -> KnownService:
    """Every third is down, and all were asked as often as is kept."""
    service = KnownService(
        tuple(
            Modality(f"scanner-{n:04}", ae_title=f"CT{n}", host=f"10.1.{n // 250}.{n % 250}", groups=("all", f"site-{n % 40}"))
            for n in range(MODALITIES)
        )
    )
    up = [Sample(1.7e9 + 30 * turn, "echo", Reason.OK, 0.01 + turn % 7 / 1000) for turn in range(KEPT_OUTCOMES)]
    down = [*up[:30], *(Sample(sample.at, "echo", Reason.CONNECT_TIMEOUT, 3.0) for sample in up[30:])]
    failed = [Failure(sample.at, "echo", sample.reason, None, "no answer in 3 s") for sample in down[30:]]
    pasts = (Past(down, failed, [Change(down[30].at, "down")]), Past(up, [], [Change(up[0].at, "up")]))
    service.states.remember({state.modality.name: pasts[n % 3 > 0] for n, state in enumerate(service.states.all())})
    return service


def sweep_some(service: KnownService) -> None:
    """Everybody on the first page is asked once more, so that nothing that was made before is of use."""
    for number in range(0, 600, 3):
        name = f"scanner-{number:04}"
        service.states.operation_ended(Outcome(name, "echo", Reason.CONNECT_TIMEOUT, detail="no answer in 3 s", duration=3.0))


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/?fragment=1", "/?q=scanner-4711", "/?failing=1&group=site-9", "/?page=50"),
        *("/modalities/scanner-0003", "/storage"),
    ],
)
async def test_a_page_takes_a_few_milliseconds(
    path: str, large: KnownService, serve: Serve, record_property: Callable[[str, object], None]
) -> None:
    took: list[float] = []
    async with serve(large) as client:
        await client.get(path)
        for _ in range(REQUESTS):
            sweep_some(large)
            before = time.process_time()
            answer = await client.get(path)
            took.append((time.process_time() - before) * 1000)
            assert answer.status_code == httpx.codes.OK
    record_property(
        "page", f"{path}: {statistics.median(took):.0f} ms, {len(answer.content) // 1024} KiB, {MODALITIES} modalities"
    )
    assert statistics.median(took) <= MOST
