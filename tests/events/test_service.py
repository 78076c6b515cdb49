"""Events of the whole service: what arrives, what is complete, what goes down, all told by real targets."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.service.config import load
from asyncdicom.service.logs import logging_to
from asyncdicom.service.run import Service
from asyncdicom.testing import SimulatedModality, send_instances, synthetic_study
from tests.conftest import Baseline
from tests.events.conftest import eventually
from tests.events.receiving import TAKE, lines_of, posted, receiver

HEAD = """
[scp]
port = 0
drain_timeout = 2.0
[archive]
min_free = "0 B"
durability = "none"
[web]
port = 0
[events]
study_complete_after = 0.6
"""


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """The log as the service writes it: on a thread, so that no test blocks the loop with it."""
    stream = io.StringIO()
    with logging_to(stream, format="json"):
        yield stream


def command(kept: Path, *on: str, more: str = "") -> str:
    """A target that keeps its events in a file."""
    wanted = ", ".join(f'"{kind}"' for kind in on)
    return f"[[events.target]]\nkind = \"command\"\non = [{wanted}]\nrun = ['sh', '-c', '{TAKE}', '{kept}']\n{more}"


async def made(path: Path, text: str) -> Service:
    await anyio.Path(path).write_text(text)
    return Service(await anyio.to_thread.run_sync(load, path))


async def metrics_of(service: Service) -> dict[str, float]:
    assert service.web is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://{service.web[0]}:{service.web[1]}/metrics")).text
    found = re.findall(r"^asyncdicom_((?:outbox|event|studies|modality_quiet|modality_expected)\S*) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_what_parallel_senders_store_is_told_and_each_study_is_complete_once_for_all_of_them(
    no_leaks: Baseline, tmp_path: Path
) -> None:
    kept, stored = tmp_path / "kept", tmp_path / "stored"
    study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(12, 16, 16)])
    async with receiver(stored, secret="of the tests") as running:
        await anyio.Path(tmp_path / "secret").write_text("of the tests\n")
        webhook = (
            '[[events.target]]\nkind = "webhook"\nname = "pipeline"\non = ["instance.stored"]\n'
            f'url = "{running.url}"\nsecret_file = "secret"\n'
        )
        service = await made(tmp_path / "a.toml", HEAD + command(kept, "study.complete") + webhook)
        async with service:
            assert (await metrics_of(service)) == {
                "outbox_pending": 0,
                "outbox_oldest_timestamp_seconds": 0,
                'events_delivered_total{target="command"}': 0,
                'events_delivered_total{target="pipeline"}': 0,
                'event_failures_total{target="command"}': 0,
                'event_failures_total{target="pipeline"}': 0,
                "studies_completed_total": 0,
            }
            assert service.scp is not None

            async def send(part: int) -> None:
                assert service.scp is not None
                # The last ones begin when the first have ended: all of it is one study that goes on.
                await anyio.sleep(0.25 * part)
                await send_instances("127.0.0.1", service.scp.port, study[part * 3 : part * 3 + 3])

            async with anyio.create_task_group() as tasks:
                for part in range(4):
                    tasks.start_soon(send, part)
            await eventually(lambda: len(lines_of(kept)) == 1 and len(posted(stored)) == 12)
            await eventually(lambda: service.metrics.registry.get_sample_value("asyncdicom_outbox_pending") == 0)
            counted = await metrics_of(service)
            assert counted['events_delivered_total{target="pipeline"}'] == 12
            assert counted['events_delivered_total{target="command"}'] == counted["studies_completed_total"] == 1
            # One more: complete again, with all that is there.
            more = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(13, 16, 16)][12:])
            await send_instances("127.0.0.1", service.scp.port, more)
            await eventually(lambda: len(posted(stored)) == 13)
    complete, *_ = await anyio.to_thread.run_sync(lines_of, kept)
    instances = await anyio.to_thread.run_sync(posted, stored)
    assert complete["data"]["instances"] == 12
    assert {event["data"]["StudyInstanceUID"] for event in instances[:12]} == {complete["data"]["StudyInstanceUID"]}
    for event in instances:
        assert await anyio.Path(event["data"]["path"]).is_file()


async def test_a_modality_that_goes_down_and_comes_up_is_told(no_leaks: Baseline, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    sim = SimulatedModality()
    async with sim:
        entry = f'[[modality]]\nname = "ct1"\nae_title = "{sim.ae_title}"\nhost = "127.0.0.1"\nport = {sim.port}\n'
        target = command(kept, "modality.down", "modality.up")
        service = await made(tmp_path / "a.toml", HEAD + target + "[[sweep]]\nevery = 0.1\n" + entry)
        port = sim.port
        async with service:
            await eventually(lambda: any(state.condition == "up" for state in service.states.all()))
            await sim.__aexit__(None, None, None)
            await eventually(lambda: [event["kind"] for event in lines_of(kept)] == ["modality.down"])
        async with SimulatedModality(ae_title=sim.ae_title, port=port):
            # It came up while nobody looked.
            async with await made(tmp_path / "a.toml", HEAD + target + "[[sweep]]\nevery = 0.1\n" + entry):
                await eventually(lambda: [event["kind"] for event in lines_of(kept)] == ["modality.down", "modality.up"])
    down, up = await anyio.to_thread.run_sync(lines_of, kept)
    assert down["data"] == {
        "modality": "ct1",
        "ae_title": sim.ae_title,
        "host": "127.0.0.1",
        "port": port,
        "reason": "connect_refused",
        "since": down["data"]["since"],
    }
    assert up["data"]["reason"] == "ok"


async def test_a_modality_that_falls_silent_and_is_heard_again_is_told_once_for_each(
    no_leaks: Baseline, tmp_path: Path
) -> None:
    kept, hooked = tmp_path / "kept", tmp_path / "hooked"
    webhook = '[[events.target]]\nkind = "webhook"\non = ["modality.quiet"]\nurl = "{url}"\n'
    entry = '[[modality]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.1"\narrivals = { within = 0.4 }\n'
    text = HEAD + command(kept, "modality.quiet", "modality.heard") + entry
    study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(1, 16, 16)])

    def kinds() -> list[str]:
        return [event["kind"] for event in lines_of(kept)]

    async with receiver(hooked) as hook, await made(tmp_path / "a.toml", text + webhook.format(url=hook.url)) as service:
        assert service.scp is not None
        await eventually(lambda: kinds() == ["modality.quiet"] and len(posted(hooked)) == 1)
        state = service.states.get("ct1")
        assert state is not None
        assert state.quiet_since == state.expected_by is not None
        counted = await metrics_of(service)
        assert counted['modality_quiet{modality="ct1"}'] == 1
        assert counted['modality_expected_by_timestamp_seconds{modality="ct1"}'] == state.expected_by
    # It is as quiet as before: a restart is no news.
    async with await made(tmp_path / "a.toml", text) as service:
        assert service.scp is not None
        state = service.states.get("ct1")
        assert state is not None
        assert state.quiet_since is not None
        await anyio.sleep(0.6)
        assert await anyio.to_thread.run_sync(kinds) == ["modality.quiet"]
        await send_instances("127.0.0.1", service.scp.port, study, calling_ae_title="CT1")
        await eventually(lambda: kinds() == ["modality.quiet", "modality.heard", "modality.quiet"])
    quiet, heard, again = await anyio.to_thread.run_sync(lines_of, kept)
    assert quiet["data"]["last_received"] is None
    assert await anyio.to_thread.run_sync(posted, hooked) == [quiet]
    assert heard["data"] == {
        "modality": "ct1",
        "ae_title": "CT1",
        "last_received": heard["data"]["last_received"],
        "expected_by": heard["data"]["expected_by"],
    }
    assert again["data"]["last_received"] == heard["data"]["last_received"] < heard["data"]["expected_by"]


async def test_a_reload_changes_what_is_expected_at_once(no_leaks: Baseline, tmp_path: Path) -> None:
    kept, path = tmp_path / "kept", tmp_path / "a.toml"
    entry = '[[modality]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.1"\n'
    text = HEAD + command(kept, "modality.quiet", "modality.heard") + entry
    async with await made(path, text) as service:
        assert "modality_quiet" not in str(await metrics_of(service))
        for arrivals, kinds in (
            ("{ within = 0.2 }", ["modality.quiet"]),
            ("{ within = 3600.0 }", ["modality.quiet", "modality.heard"]),
            ("{ within = 0.2 }", ["modality.quiet", "modality.heard", "modality.quiet"]),
            ('"off"', ["modality.quiet", "modality.heard", "modality.quiet", "modality.heard"]),
        ):
            await anyio.Path(path).write_text(f"{text}arrivals = {arrivals}\n")
            assert await service.reload() == []
            await eventually(lambda kinds=kinds: [event["kind"] for event in lines_of(kept)] == kinds)
        assert "modality_quiet" not in str(await metrics_of(service))


async def test_the_first_target_of_an_old_archive_is_not_told_of_all_of_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(2, 16, 16)])
    async with await made(tmp_path / "a.toml", HEAD) as service:
        assert service.scp is not None
        await send_instances("127.0.0.1", service.scp.port, study)
        await anyio.sleep(0.7)
    async with await made(tmp_path / "a.toml", HEAD + command(kept, "study.complete", "instance.stored")) as service:
        assert service.scp is not None
        await anyio.sleep(1.0)
        assert await anyio.to_thread.run_sync(lines_of, kept) == []
    # The target is known now: what becomes quiet while nobody looks is told later.
    async with await made(tmp_path / "a.toml", HEAD + command(kept, "study.complete")) as service:
        assert service.scp is not None
        more = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(3, 16, 16)][2:])
        await send_instances("127.0.0.1", service.scp.port, more)
    await anyio.sleep(0.7)
    async with await made(tmp_path / "a.toml", HEAD + command(kept, "study.complete")):
        await eventually(lambda: len(lines_of(kept)) == 1)


async def test_a_reload_reads_the_secret_again_and_names_what_needs_a_restart(tmp_path: Path, log: io.StringIO) -> None:
    kept = tmp_path / "kept"
    async with receiver(kept, secret="the second") as running:
        await anyio.Path(tmp_path / "secret").write_text("the first")
        webhook = (
            f'[[events.target]]\nkind = "webhook"\non = ["instance.stored"]\nurl = "{running.url}"\nsecret_file = "secret"\n'
        )
        service = await made(tmp_path / "a.toml", HEAD + webhook)
        async with service:
            assert service.scp is not None
            study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(1, 16, 16)])
            await send_instances("127.0.0.1", service.scp.port, study)
            failures = "asyncdicom_event_failures_total"
            await eventually(lambda: service.metrics.registry.get_sample_value(failures, {"target": "webhook"}))
            await anyio.Path(tmp_path / "secret").write_text("the second")
            await anyio.Path(tmp_path / "a.toml").write_text(HEAD + webhook + "timeout = 5.0\n")
            assert await service.reload() == []
            await eventually(lambda: len(posted(kept)) == 1)
        assert "events.target" in log.getvalue()
        assert "answered with status 401" in log.getvalue()


async def test_an_address_that_only_the_library_finds_wrong_is_a_clear_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"events\.target\[0\]\.url.*no address: "):
        await made(tmp_path / "a.toml", HEAD + '[[events.target]]\nkind = "webhook"\nurl = "http://ⅷ.example/"\n')


async def test_a_webhook_without_its_library_is_a_clear_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncdicom.events.webhook", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'asyncdicom\[events\]'"):
        await made(tmp_path / "a.toml", HEAD + '[[events.target]]\nkind = "webhook"\nurl = "http://127.0.0.1/"\n')
