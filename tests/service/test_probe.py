"""``/probe``: one modality of the inventory asked now, in the time that the scraper has, and nobody else."""

from __future__ import annotations

import time
from pathlib import Path

import anyio.to_thread
import pytest

from asyncdicom import Archive, StorageSCP
from asyncdicom.testing import Behaviour, Fault, SimulatedModality
from tests.conftest import Baseline
from tests.peers.programs import program
from tests.peers.running import run_program_async
from tests.service.test_service import WEB, client_of, entry, made

_CANARY = "CANARY-7731"


def _samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[:1] != "#")}


async def test_a_modality_that_answers_has_succeeded_with_its_phases_and_its_peer(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            answer = await client.get("/probe", params={"target": "sim", "module": "echo"})
    samples = _samples(answer.text)
    assert answer.status_code == 200
    assert (samples["probe_success"], samples['probe_dicom_reason{reason="ok"}']) == (1, 1)
    assert samples["probe_dicom_status_code"] == 0
    for phase in ("connect", "associate", "operation", "release"):
        assert samples[f'probe_dicom_phase_duration_seconds{{phase="{phase}"}}'] > 0
    assert any(name.startswith("probe_dicom_peer_info{implementation_class_uid=") for name in samples)
    assert "probe_dicom_find_matches" not in samples
    assert sim.echoes == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("refuse", "connect_refused"), ("reject", "rejected_permanent"), ("abort", "aborted"), ("silent", "associate_timeout")],
)
async def test_a_modality_that_does_not_is_told_of_with_status_200(
    no_leaks: Baseline, tmp_path: Path, behaviour: str, reason: str
) -> None:
    async with SimulatedModality(behaviour) as sim:
        quick = entry(sim, "sim") + "timeouts = { associate = 0.3, operation = 0.3 }\n"
        service = await made(tmp_path / "a.toml", WEB + quick)
        async with service, client_of(service) as client:
            answer = await client.get("/probe", params={"target": "sim"})
            debug = await client.get("/probe", params={"target": "sim", "debug": "true"})
    samples = _samples(answer.text)
    assert answer.status_code == debug.status_code == 200
    assert samples["probe_success"] == 0
    assert [name for name, value in samples.items() if name.startswith("probe_dicom_reason") and value] == [
        f'probe_dicom_reason{{reason="{reason}"}}'
    ]
    rejected = 'probe_dicom_rejected{reason="3",result="1",source="1"}'
    assert (rejected in samples) is (reason == "rejected_permanent")
    assert f"echo: {reason}" in debug.text
    assert "look at: " in debug.text


async def test_the_scrapers_timeout_is_honoured(no_leaks: Baseline, tmp_path: Path) -> None:
    async with SimulatedModality("silent") as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            started = time.monotonic()
            headers = {"X-Prometheus-Scrape-Timeout-Seconds": "1.2"}
            answer = await client.get("/probe", params={"target": "sim", "module": "find"}, headers=headers)
            spent = time.monotonic() - started
    samples = _samples(answer.text)
    assert 0.6 < spent < 1.1
    assert samples["probe_timeout_seconds"] == pytest.approx(0.7)
    assert samples['probe_dicom_reason{reason="deadline"}'] == 1


async def test_a_query_is_asked_after_the_echo_and_stopped_at_the_first_match(no_leaks: Baseline, tmp_path: Path) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.002)
    async with SimulatedModality(endless, matches=[{"StudyInstanceUID": "1.2", "PatientName": _CANARY}]) as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            answer = await client.get("/probe", params={"target": "sim", "module": "find"})
            debug = await client.get("/probe", params={"target": "sim", "module": "find", "debug": "true"})
        assert sim.echoes == 2
        assert sim.cancels_received == 2
    samples = _samples(answer.text)
    assert (samples["probe_success"], samples["probe_dicom_find_matches"]) == (1, 1)
    for said in ("A-ASSOCIATE-RQ", "C-FIND-RQ on context 1", "bytes (not shown)", "C-CANCEL-RQ", "A-RELEASE-RP"):
        assert said in debug.text
    assert _CANARY not in debug.text


@pytest.mark.parametrize("module", ["find", "worklist"])
async def test_a_modality_that_echoes_and_cannot_be_queried_has_not_succeeded(tmp_path: Path, module: str) -> None:
    """That is what the module is for: a C-ECHO alone would not tell."""
    async with StorageSCP(Archive(tmp_path / "unused"), port=0) as scp:
        modality = f'[[modality]]\nname = "store"\nae_title = "STORE"\nhost = "127.0.0.1"\nport = {scp.port}\n'
        service = await made(tmp_path / "a.toml", WEB + modality)
        async with service, client_of(service) as client:
            samples = _samples((await client.get("/probe", params={"target": "store", "module": module})).text)
    assert samples["probe_success"] == 0
    assert samples['probe_dicom_reason{reason="no_context"}'] == 1


async def test_a_synthetic_instance_goes_to_those_that_allow_it_and_is_kept_once(no_leaks: Baseline, tmp_path: Path) -> None:
    async with Archive(tmp_path / "kept") as archive, StorageSCP(archive, port=0) as scp:
        modality = f'[[modality]]\nname = "test"\nae_title = "TEST"\nhost = "127.0.0.1"\nport = {scp.port}\n'
        allowed = modality + "quirks = { probe_store = true }\n"
        service = await made(tmp_path / "a.toml", WEB + allowed + modality.replace('"test"', '"closed"'))
        async with service, client_of(service) as client:
            for _ in range(2):
                answer = await client.get("/probe", params={"target": "test", "module": "store"})
                assert _samples(answer.text)["probe_success"] == 1
            refused = await client.get("/probe", params={"target": "closed", "module": "store"})
        assert refused.status_code == 400
        assert "probe_store = true" in refused.text
    kept = await anyio.to_thread.run_sync(lambda: [path.read_bytes() for path in (tmp_path / "kept").rglob("*.dcm")])
    assert len(kept) == 1
    assert b"ASYNCDICOM-PROBE" in kept[0]


@pytest.mark.parametrize("target", ["", "nobody", "@all", "@scanners", "SIM@127.0.0.1:{port}", "127.0.0.1:{port}"])
async def test_only_names_of_the_inventory_are_probed(no_leaks: Baseline, tmp_path: Path, target: str) -> None:
    """Bar S10: nobody who reaches the web side can have it call anybody."""
    async with SimulatedModality() as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim"))
        async with service, client_of(service) as client:
            answer = await client.get("/probe", params={"target": target.format(port=sim.port)})
            unknown = await client.get("/probe", params={"target": "sim", "module": "reboot"})
        assert (answer.status_code, unknown.status_code) == (400, 400)
        assert "the name of a modality" in answer.text
        assert "one of echo, find, worklist, store" in unknown.text
        assert sim.echoes == 0


@pytest.mark.peer("promtool")
async def test_what_a_probe_answers_is_well_formed(tmp_path: Path) -> None:
    async with SimulatedModality(matches=[{"StudyInstanceUID": "1.2"}]) as sim, SimulatedModality("reject") as rejecting:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + entry(rejecting, "rejecting"))
        async with service, client_of(service) as client:
            for target in ("sim", "rejecting"):
                answer = await client.get("/probe", params={"target": target, "module": "find"})
                checked = await run_program_async([program("promtool"), "check", "metrics"], 10, stdin=answer.content)
                assert (checked.returncode, checked.stderr) == (0, "")
