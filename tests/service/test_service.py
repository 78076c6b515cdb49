"""The service with its real parts: a simulated fleet on one side, a sender on the other, HTTP in the middle."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.service.config import load
from asyncdicom.service.logs import logging_to
from asyncdicom.service.run import Service
from asyncdicom.testing import Behaviour, SimulatedModality, send_instances, synthetic_study
from tests.conftest import Baseline


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """The log as the service writes it: on a thread, so that no test blocks the loop with it."""
    stream = io.StringIO()
    with logging_to(stream, format="json"):
        yield stream


SCP = '[scp]\nport = 0\ndrain_timeout = 2.0\n[archive]\nmin_free = "0 B"\ndurability = "none"\n'
WEB = "[web]\nport = 0\n"


def entry(sim: SimulatedModality, name: str, groups: str = "[]") -> str:
    address = f'ae_title = "{sim.ae_title}"\nhost = "127.0.0.1"\nport = {sim.port}'
    return f'[[modality]]\nname = "{name}"\n{address}\ngroups = {groups}\n'


async def write(path: Path, text: str) -> None:
    await anyio.Path(path).write_text(text)


async def made(path: Path, text: str) -> Service:
    """A service for a configuration file; it is read in a thread, because that blocks."""
    await write(path, text)
    return Service(await anyio.to_thread.run_sync(load, path))


def client_of(service: Service, **settings: Any) -> httpx.AsyncClient:
    assert service.web is not None
    return httpx.AsyncClient(base_url=f"http://{service.web[0]}:{service.web[1]}", trust_env=False, timeout=10, **settings)


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


def condition_of(service: Service, name: str) -> str | None:
    state = service.states.get(name)
    return state.condition if state is not None else None


async def test_it_sweeps_receives_and_shows_both(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality() as up, SimulatedModality("refuse") as down:
        sweep = '[[sweep]]\nevery = 0.5\n[[sweep]]\noperation = "find"\nevery = 0.5\ntargets = ["up"]\n'
        service = await made(tmp_path / "a.toml", SCP + WEB + sweep + entry(up, "up") + entry(down, "down"))
        async with service, client_of(service) as client:
            assert (await client.get("/-/ready")).status_code == 200
            await until(lambda: condition_of(service, "up") == "up" and condition_of(service, "down") == "down")
            assert service.scp is not None
            study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(3, 16, 16)])
            await send_instances("127.0.0.1", service.scp.port, study, calling_ae_title=up.ae_title)
            # The peer has its answer to the release a moment before the association counts as gone.
            await until(lambda: service.storage_state.associations == 0)
            metrics = (await client.get("/metrics")).text
            page = (await client.get("/")).text
            items = {item["name"]: item for item in (await client.get("/api/modalities")).json()}
        assert 'asyncdicom_modality_up{modality="up"} 1.0' in metrics
        assert 'asyncdicom_modality_up{modality="down"} 0.0' in metrics
        assert f'asyncdicom_store_requests_total{{calling_ae="{up.ae_title}"}} 3.0' in metrics
        assert "asyncdicom_scp_associations 0.0" in metrics
        assert items["down"]["reason"] == "connect_refused"
        assert items["up"]["last_received"] is not None
        assert "check the port, and whether its DICOM service runs" in page
        files = await anyio.to_thread.run_sync(lambda: list((tmp_path / "data/archive").rglob("*.dcm")))
        assert len(files) == 3


async def test_the_storage_page_tells_who_sent_what_and_what_came_again(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality() as scanner:
        events = '[events]\n[[events.target]]\nname = "t"\nkind = "command"\nrun = ["false"]\non = ["instance.stored"]\n'
        index = f'index = "sqlite:{tmp_path}/index.db"\n'
        service = await made(tmp_path / "a.toml", SCP + index + events + WEB + entry(scanner, "ct 1"))
        async with service, client_of(service) as client:
            assert service.scp is not None
            study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(3, 16, 16)])
            for title in (scanner.ae_title, "STRANGER"):
                await send_instances("127.0.0.1", service.scp.port, study, calling_ae_title=title)
            await until(lambda: service.storage_state.associations == 0)
            # Nobody takes the events of what was new, and they are counted every second.
            with anyio.fail_after(5):
                while '<dt>Events that wait</dt><dd class="figure">3</dd>' not in (await client.get("/storage")).text:
                    await anyio.sleep(0.05)
            summary = await anyio.to_thread.run_sync(service.storage)
            assert summary is not None
            page = (await client.get("/storage")).text
        kept = {arrived.calling_ae_title: arrived.instances for arrived in summary.arrivals}
        assert kept == {scanner.ae_title: 3, "STRANGER": 3}
        assert summary.duplicates == {"identical": 3}
        assert (summary.quarantined, summary.settling, summary.forecast) == (0, 60.0, None)
        assert 'href="/modalities/ct%201"' in page
        assert "not in the inventory" in page
        assert page.count(">in progress<") == 1


async def test_an_echo_by_the_api_is_an_association_now(tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            assert condition_of(service, "sim") == "unknown"
            answer = (await client.post("/api/modalities/sim/echo")).json()
            assert (answer["ok"], answer["status"], sim.echoes) == (True, 0, 1)
            assert condition_of(service, "sim") == "up"


async def test_a_reload_replaces_modalities_sweeps_and_the_allow_list_without_dropping_associations(
    no_leaks: Baseline, tmp_path: Path
) -> None:
    async with SimulatedModality() as one, SimulatedModality() as two:
        path = tmp_path / "a.toml"
        service = await made(path, SCP + WEB + "[[sweep]]\nevery = 0.2\n" + entry(one, "one"))
        async with service, client_of(service) as client:
            assert service.scp is not None
            await until(lambda: condition_of(service, "one") == "up")
            from asyncdicom.testing import Wire
            from asyncdicom.upper_layer.context import VERIFICATION, PresentationContext

            async with await Wire.connect("127.0.0.1", service.scp.port) as wire:
                await wire.associate([PresentationContext(VERIFICATION)])
                allow = '[[scp.allow]]\nae_title = "NOBODY"\n'
                changed = SCP.replace("[archive]", allow + "[archive]") + WEB + "[[sweep]]\nevery = 0.3\n" + entry(two, "two")
                await write(path, changed)
                assert (await client.post("/-/reload")).json() == {"reloaded": True, "mistakes": []}
                assert await wire.echo() == 0
                await wire.release()
            assert condition_of(service, "one") is None
            await until(lambda: condition_of(service, "two") == "up")
            text = (await client.get("/metrics")).text
            assert 'modality="one"' not in text
            assert 'modality="two"' in text
            async with await Wire.connect("127.0.0.1", service.scp.port) as wire:
                with pytest.raises(Exception, match=r"rejected|reject"):
                    await wire.associate([PresentationContext(VERIFICATION)])


async def test_a_bad_configuration_keeps_the_old_one_and_says_so(tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        path = tmp_path / "a.toml"
        service = await made(path, WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            await write(path, WEB + entry(sim, "sim") + entry(sim, "sim") + "[scp]\nport = -1\n")
            answer = await client.post("/-/reload")
            assert answer.status_code == 422
            assert [mistake.partition(" = ")[0] for mistake in answer.json()["mistakes"]] == ["scp.port", "modality[1].name"]
            assert [state.modality.name for state in service.states.all()] == ["sim"]
            assert (await client.post("/api/modalities/sim/echo")).json()["ok"]


async def test_settings_that_need_a_restart_are_named_every_time(tmp_path: Path, log: io.StringIO) -> None:
    path = tmp_path / "a.toml"
    service = await made(path, SCP + WEB)
    async with service:
        await write(path, SCP.replace("port = 0", "port = 0\nmax_pdu = 65536") + '[web]\nport = 1\n[ae]\ntitle = "NEW"\n')
        for _ in range(2):
            assert await service.reload() == []
        await until(lambda: log.getvalue().count("with a restart only") == 2)
        assert service.title == "ASYNCDICOM"
    records = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [one["settings"] for one in records if "settings" in one] == ["ae.title, scp.max_pdu, web.port"] * 2


async def test_reloads_leak_nothing(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        path = tmp_path / "a.toml"
        service = await made(path, WEB + "[[sweep]]\nevery = 0.05\n" + entry(sim, "sim"))
        async with service:
            await until(lambda: condition_of(service, "sim") == "up")
            tasks = Baseline()
            for index in range(20):
                await write(path, WEB + f"[[sweep]]\nevery = {0.05 + index / 100}\n" + entry(sim, "sim", f'["g{index}"]'))
                assert await service.reload() == []
            assert condition_of(service, "sim") == "up"
            await until(lambda: service.fleets.open == 1)
            # Sweeps and fleet were replaced, so that tasks have other identities but not more of them.
            await until(lambda: len(tasks.leaks()) <= 6)


async def test_a_listener_that_is_taken_is_a_configuration_error_and_ends_what_was_started(
    no_leaks: Baseline, tmp_path: Path
) -> None:
    async with await made(tmp_path / "one.toml", WEB) as first:
        assert first.web is not None
        second = await made(tmp_path / "two.toml", SCP + f"[web]\nport = {first.web[1]}\n")
        with pytest.raises(ConfigurationError, match=r"web\.port"):
            async with second:
                pass


async def test_not_ready_names_the_part_that_cannot_work(tmp_path: Path) -> None:
    service = await made(tmp_path / "a.toml", SCP)
    assert "still starting" in (await service.not_ready())[0]
    async with service:
        assert await service.not_ready() == []
        assert service.archive is not None
        assert service.archive.index is not None
        await service.archive.index.close()
        assert await service.not_ready() == ["the index does not answer"]


async def test_the_last_instance_of_a_modality_is_known_after_a_restart(tmp_path: Path) -> None:
    text = SCP + '[[modality]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.1"\n'
    study = await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(1, 16, 16)])
    async with await made(tmp_path / "a.toml", text) as service:
        assert service.scp is not None
        await send_instances("127.0.0.1", service.scp.port, study, calling_ae_title="CT1")
    async with await made(tmp_path / "a.toml", text) as service:
        state = service.states.get("ct1")
        assert state is not None
        assert state.last_received is not None


async def test_a_part_that_fails_ends_the_service(tmp_path: Path) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("the listener is gone")

    service = await made(tmp_path / "a.toml", WEB)
    service.metrics.sample_loop_lag = fail  # type: ignore[method-assign]
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with service:
            await anyio.sleep(5)


async def test_a_restart_forgets_nothing_of_a_modality(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality("reject") as sim:
        text = SCP + WEB + "[[sweep]]\nevery = 0.2\n" + entry(sim, "sim")
        service = await made(tmp_path / "a.toml", text)
        async with service:
            await until(lambda: condition_of(service, "sim") == "down")
            before = service.states.get("sim")
        assert before is not None
        # Without a sweep nothing is learnt anew.
        again = await made(tmp_path / "a.toml", SCP + WEB + entry(sim, "sim"))
        async with again, client_of(again) as client:
            known = (await client.get("/api/modalities/sim")).json()
            page = (await client.get("/modalities/sim")).text
    assert (known["state"], known["reason"]) == ("down", "rejected_permanent")
    assert known["failed"][0]["detail"] == before.failed[0].detail
    assert [change["state"] for change in known["changes"]] == ["down"]
    assert "Failures, however long ago" in page


async def test_a_sweep_by_a_module_decides_what_is_up(no_leaks: Baseline, tmp_path: Path) -> None:
    """A device that echoes, answers no worklist: that is what the sweep is for."""
    verification = {"1.2.840.10008.1.1"}
    sweeps = '[[sweep]]\nevery = 0.1\n[[sweep]]\nmodule = "worklist"\nevery = 0.1\n'
    async with SimulatedModality() as ris, SimulatedModality(sop_classes=verification) as ct:
        service = await made(tmp_path / "a.toml", WEB + sweeps + entry(ris, "ris") + entry(ct, "ct"))
        async with service, client_of(service) as client:
            await until(lambda: ris.queries and condition_of(service, "ris") == "up" and condition_of(service, "ct") == "down")
            text = (await client.get("/metrics")).text
    assert 'asyncdicom_sweep_duration_seconds{sweep="worklist"}' in text
    assert 'asyncdicom_modality_last_duration_seconds{modality="ct",operation="find"}' in text


async def test_one_failure_is_shown_and_two_are_told(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        text = WEB + "[fleet]\ndown_after = 2\n" + entry(sim, "sim")
        service = await made(tmp_path / "a.toml", text)
        async with service, client_of(service) as client:
            for fault, state, up in (("healthy", "up", 1), ("reject", "up", 0), ("reject", "down", 0), ("healthy", "up", 1)):
                sim.behaviour = Behaviour.of(fault)
                await client.post("/api/modalities/sim/echo")
                told = (await client.get("/api/modalities/sim")).json()
                assert (told["state"], told["reason"] == "ok") == (state, bool(up))
                assert f'asyncdicom_modality_up{{modality="sim"}} {up}.0' in (await client.get("/metrics")).text
