"""dcmjs-dimse sends to us, plain and with TLS: what it sent lies in the archive, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from asyncdicom import Access, AllowRule, Archive, Instance, ServerTLS, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.upper_layer.context import STUDY_ROOT_FIND
from tests.peers import dcmjs
from tests.peers.certificates import Certificates
from tests.peers.peer import Address
from tests.scp.conftest import Seen

pytestmark = pytest.mark.blocking


def uids(study: list[Path]) -> list[str]:
    return [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in study]


def kept(folder: Path) -> dict[str, bytes]:
    """The datasets of an archive as they lie there."""
    found = {}
    for path in folder.rglob("*.dcm"):
        instance = Instance.read(path)
        found[instance.sop_instance_uid] = path.read_bytes()[instance.offset :]
    return found


def stores(study: list[Path]) -> list[dict[str, str]]:
    return [{"name": "store", "file": str(path)} for path in study]


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_what_dcmjs_sends_is_kept_byte_for_byte(
    no_leaks: object,
    engine: Engine,
    tmp_path: Path,
    study: list[Path],
    seen: Seen,
    certificates: Certificates,
    secured: bool,
) -> None:
    server = certificates.server
    tls = ServerTLS(server.certificate, server.key, client_ca=server.ca) if secured else None
    async with (
        Archive(tmp_path / "archive") as archive,
        StorageSCP(archive, port=0, engine=engine, tls=tls, observer=seen) as scp,
    ):
        said = await dcmjs.scu(
            Address("ASYNCDICOM", scp.port),
            [{"name": "echo"}, *stores(study)],
            tmp_path,
            asynchronous=True,
            user_name="jane",
            tls=certificates.client if secured else None,
        )
        await seen.settled()
    assert said.kinds == ["accepted", *["response"] * 4, "released"]
    assert said.statuses == [0x0000] * 4
    # It offers a window of eight operations; we do one at a time.
    assert said.events[0]["operations"] == [1, 1]
    assert kept(tmp_path / "archive") == {uid: said.sent(uid) for uid in uids(study)}
    assert (seen.accepted, seen.aborted) == (1, {})


async def test_a_service_that_we_do_not_have_is_refused_to_dcmjs_by_its_context(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path], seen: Seen
) -> None:
    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
        said = await dcmjs.scu(
            Address("ASYNCDICOM", scp.port),
            [{"name": "find", "keys": {"PatientID": "P1"}}, *stores(study[:1])],
            tmp_path,
            contexts={STUDY_ROOT_FIND: ["1.2.840.10008.1.2.1"]},
        )
        await seen.settled()
    # It passes over the request that has no context.
    assert (said.kinds, said.statuses) == (["accepted", "response", "released"], [0x0000])
    assert kept(tmp_path / "archive").keys() == set(uids(study[:1]))
    assert seen.aborted == {}


async def test_what_was_acknowledged_before_dcmjs_aborts_is_kept(
    no_leaks: object, engine: Engine, tmp_path: Path, study: list[Path], seen: Seen
) -> None:
    async with Archive(tmp_path / "archive") as archive, StorageSCP(archive, port=0, engine=engine, observer=seen) as scp:
        operations: list[dict[str, Any]] = [*stores(study[:1]), {"name": "echo", "abort": True}]
        said = await dcmjs.scu(Address("ASYNCDICOM", scp.port), operations, tmp_path)
        await seen.settled()
    assert (said.kinds, said.statuses) == (["accepted", "response", "response"], [0x0000] * 2)
    assert kept(tmp_path / "archive") == {uid: said.sent(uid) for uid in uids(study[:1])}
    assert (seen.accepted, seen.aborted) == (1, {"peer": 1})


async def test_dcmjs_understands_that_it_is_rejected(no_leaks: object, engine: Engine, tmp_path: Path, seen: Seen) -> None:
    access = Access((AllowRule.parse("CT1", ["127.0.0.0/8"]),))
    async with StorageSCP(port=0, engine=engine, access=access, observer=seen) as scp:
        said = await dcmjs.scu(Address("ASYNCDICOM", scp.port), [{"name": "echo"}], tmp_path, calling="STRANGER")
        await seen.settled()
    assert said.events == [{"event": "rejected", "result": 1, "source": 1, "reason": 3}]
    assert seen.rejected == {"calling_ae_title": 1}
