"""``[[probe]]``: modules of the configuration, over HTTP and after a reload."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import anyio
import pytest

from asyncdicom.modality import Engine
from asyncdicom.testing import SimulatedModality, certificates
from tests.conftest import Baseline
from tests.service.test_probe import _samples as samples_of
from tests.service.test_service import WEB, client_of, condition_of, entry, made, write

_VERIFICATION, _CT, _MR = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
_MATCHES = [{"StudyInstanceUID": f"1.2.{number}", "PatientName": "CANARY-4711"} for number in range(3)]


@pytest.mark.parametrize(("wanted", "success", "came"), [(0, 1, 1), (2, 1, 2), (3, 1, 3), (4, 0, 3)])
async def test_a_query_succeeds_with_as_many_matches_as_the_module_wants(
    no_leaks: Baseline, tmp_path: Path, wanted: int, success: int, came: int
) -> None:
    week = f'[[probe]]\nname = "week"\noperation = "find"\nkeys = {{ StudyDate = "today-7-today" }}\nmin_matches = {wanted}\n'
    async with SimulatedModality(matches=_MATCHES) as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + week)
        async with service, client_of(service) as client:
            answer = await client.get("/probe", params={"target": "sim", "module": "week"})
            debug = await client.get("/probe", params={"target": "sim", "module": "week", "debug": "true"})
        today = datetime.now().astimezone().date()
        assert sim.queries[-1].StudyDate == f"{today - timedelta(days=7):%Y%m%d}-{today:%Y%m%d}"
    samples = samples_of(answer.text)
    assert (samples["probe_success"], samples["probe_dicom_find_matches"]) == (success, came)
    assert samples["probe_dicom_failed_due_to_matches"] == 1 - success
    # The query was answered: what was wanted of the answer is the module's own.
    assert samples['probe_dicom_reason{reason="ok"}'] == 1
    assert ("too few matches: 3, and the module wants 4" in debug.text) is (not success)
    assert "CANARY" not in debug.text


async def test_no_match_is_success_where_none_is_wanted(tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        module = '[[probe]]\nname = "any"\noperation = "find"\nlevel = "patient"\n'
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + module)
        async with service, client_of(service) as client:
            samples = samples_of((await client.get("/probe", params={"target": "sim", "module": "any"})).text)
    assert (samples["probe_success"], samples["probe_dicom_find_matches"]) == (1, 0)


@pytest.mark.parametrize("engine", ["native", "pynetdicom"])
async def test_presentation_contexts_that_are_required_have_to_be_accepted(
    no_leaks: Baseline, tmp_path: Path, engine: Engine
) -> None:
    modules = '[[probe]]\nname = "ct"\noperation = "echo"\nrequire_contexts = ["CTImageStorage"]\n'
    modules += f'[[probe]]\nname = "both"\noperation = "echo"\nrequire_contexts = ["CTImageStorage", "{_MR}"]\n'
    async with SimulatedModality(sop_classes={_VERIFICATION, _CT}) as sim:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + f'engine = "{engine}"\n' + modules)
        async with service, client_of(service) as client:
            ct = samples_of((await client.get("/probe", params={"target": "sim", "module": "ct"})).text)
            both = samples_of((await client.get("/probe", params={"target": "sim", "module": "both"})).text)
            debug = await client.get("/probe", params={"target": "sim", "module": "both", "debug": "true"})
            # It answers: that one module wants more of it makes it neither down nor up.
            assert condition_of(service, "sim") == "unknown"
            assert (await client.get("/probe", params={"target": "sim", "module": "echo"})).status_code == 200
            assert condition_of(service, "sim") == "up"
        assert (sim.echoes, sim.aborts_received) == (2, 0)
    assert (ct["probe_success"], both["probe_success"]) == (1, 0)
    assert both['probe_dicom_reason{reason="no_context"}'] == 1
    assert f"accepted no presentation context for {_MR}" in debug.text


async def test_a_module_has_its_own_calling_ae_title_and_timeout(no_leaks: Baseline, tmp_path: Path) -> None:
    module = '[[probe]]\nname = "own"\noperation = "echo"\ncalling_ae_title = "MONITOR"\ntimeout = 0.3\n'
    async with SimulatedModality() as sim, SimulatedModality("silent") as silent:
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + entry(silent, "silent") + module)
        async with service, client_of(service) as client:
            for target in ("sim", "silent"):
                headers = {"X-Prometheus-Scrape-Timeout-Seconds": "5"}
                answer = await client.get("/probe", params={"target": target, "module": "own"}, headers=headers)
                samples = samples_of(answer.text)
                assert samples["probe_timeout_seconds"] == pytest.approx(0.3)
        assert sim.requests[-1].calling_ae_title.strip() == "MONITOR"
    assert samples["probe_success"] == 0
    assert samples["probe_duration_seconds"] < 1.0


@pytest.mark.parametrize("engine", ["native", "pynetdicom"])
async def test_the_expiry_of_the_peers_certificate_is_told(no_leaks: Baseline, tmp_path: Path, engine: Engine) -> None:
    issued = await anyio.to_thread.run_sync(certificates, tmp_path / "tls")
    from cryptography import x509

    pem = await anyio.Path(issued.certificate).read_bytes()
    expires = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    async with SimulatedModality(tls=issued, matches=_MATCHES) as sim, SimulatedModality() as plain:
        tls = f'engine = "{engine}"\ntls = {{ ca = "{issued.ca}", server_name = "localhost" }}\n'
        service = await made(tmp_path / "a.toml", WEB + entry(sim, "sim") + tls + entry(plain, "plain"))
        async with service, client_of(service) as client:
            for module in ("echo", "find"):
                samples = samples_of((await client.get("/probe", params={"target": "sim", "module": module})).text)
                assert samples["probe_success"] == 1
                assert samples["probe_ssl_earliest_cert_expiry"] == expires
            samples = samples_of((await client.get("/probe", params={"target": "plain"})).text)
            assert "probe_ssl_earliest_cert_expiry" not in samples


async def test_a_reload_brings_modules_and_an_unknown_one_names_those_that_there_are(tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        before = WEB + entry(sim, "sim")
        service = await made(tmp_path / "a.toml", before)
        async with service, client_of(service) as client:
            refused = await client.get("/probe", params={"target": "sim", "module": "later"})
            assert refused.status_code == 400
            assert "one of echo, find, worklist, store" in refused.text
            await write(tmp_path / "a.toml", before + '[[probe]]\nname = "later"\noperation = "echo"\n')
            assert (await client.post("/-/reload")).json()["reloaded"]
            assert (await client.get("/probe", params={"target": "sim", "module": "later"})).status_code == 200
            refused = await client.get("/probe", params={"target": "sim", "module": "never"})
            assert "one of echo, find, worklist, store, later" in refused.text
