"""Foreign senders, plain and with TLS, and what they sent lies in the archive."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from pydicom import dcmread

from asyncdicom import Archive, Instance, ServerTLS, StorageSCP
from asyncdicom.modality import Engine
from tests.peers import dcmtk, pynetdicom_apps
from tests.peers.certificates import Certificates
from tests.peers.fixtures import Starter
from tests.peers.orthanc import Orthanc
from tests.peers.peer import Address
from tests.peers.running import run_program_async

pytestmark = [pytest.mark.peer("storescu"), pytest.mark.blocking]


def datasets(paths: list[Path]) -> dict[str, bytes]:
    return {str(dcmread(path).SOPInstanceUID): path.read_bytes()[Instance.read(path).offset :] for path in paths}


def kept(folder: Path) -> dict[str, bytes]:
    return datasets(sorted(folder.rglob("*.dcm")))


@pytest.mark.parametrize("program", ["dcmsend", "storescu", "pynetdicom"])
async def test_a_foreign_sender_s_study_is_kept(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path], program: str
) -> None:
    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, engine=engine) as scp:
        to = Address("ASYNCDICOM", scp.port)
        if program == "pynetdicom":
            command = pynetdicom_apps.storescu(to, study[0].parent)
        else:
            command = (dcmtk.dcmsend if program == "dcmsend" else dcmtk.storescu)(to, study)
        ended = await command.run_async()
        assert ended.returncode == 0, ended
    arrived = kept(tmp_path / "archive")
    assert arrived.keys() == datasets(study).keys()
    for path in (tmp_path / "archive").rglob("*.dcm"):
        checked = await run_program_async(["dciodvfy", path])
        assert "Error - Dicom dataset read failed" not in checked.stderr


async def test_dcmtk_sends_over_mutual_tls(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path], certificates: Certificates
) -> None:
    server, client = certificates.server, certificates.client
    tls = ServerTLS(server.certificate, server.key, client_ca=server.ca)
    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, tls=tls, engine=engine) as scp:
        to = Address("ASYNCDICOM", scp.port)
        ended = await dcmtk.storescu(to, study, tls=client).run_async()
        assert ended.returncode == 0, ended
        plain = await dcmtk.echoscu(to, extra=["-to", "3", "-ta", "3", "-td", "3"]).run_async()
        assert plain.returncode != 0
    assert kept(tmp_path / "archive").keys() == datasets(study).keys()


async def test_orthanc_sends_what_it_holds(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path], start_orthanc: Starter[Orthanc]
) -> None:
    from functools import partial

    import httpx

    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, ae_title="HERE", engine=engine) as scp:
        orthanc = await anyio.to_thread.run_sync(partial(start_orthanc, known=[Address("HERE", scp.port)]))
        identifiers = [await anyio.to_thread.run_sync(orthanc.upload, path) for path in study]
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"{orthanc.url}/modalities/here/store", json=identifiers)
        assert answer.status_code == 200, answer.text
    assert kept(tmp_path / "archive").keys() == datasets(study).keys()


async def test_many_dcmtk_senders_at_once_lose_nothing(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path]
) -> None:
    from tests.peers.instances import write_study

    studies = [write_study(tmp_path / f"s{n}", 5, patient_id=f"P{n}") for n in range(6)]
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with StorageSCP(archive, port=0, engine=engine) as scp:
            to = Address("ASYNCDICOM", scp.port)
            codes: list[int] = []

            async def send(paths: list[Path]) -> None:
                codes.append((await dcmtk.storescu(to, paths, nodelay=False).run_async()).returncode)

            async with anyio.create_task_group() as tasks:
                for paths in studies:
                    tasks.start_soon(send, paths)
    assert codes == [0] * 6
    assert kept(tmp_path / "archive").keys() == datasets([path for paths in studies for path in paths]).keys()
