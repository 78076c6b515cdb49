"""``asyncdicom send``."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from asyncdicom.testing import Behaviour, Fault, HeldInstance, SimulatedModality, synthetic_instance, synthetic_study
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from tests.cli.conftest import Run
from tests.peers.peer import Peer

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


@pytest.fixture
def study(folder: Path) -> list[Path]:
    """Four files in a folder with a folder in it."""
    paths = []
    for index, (_, file) in enumerate(synthetic_study(4, 16, 16)):
        path = folder / "study" / ("b" if index % 2 else "a") / f"{9 - index}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
        paths.append(path)
    return paths


@pytest.mark.parametrize("engine", ["native", "pynetdicom"])
async def test_a_folder_is_sent_in_order_with_its_bytes_untouched(
    asyncdicom: Run, study: list[Path], folder: Path, engine: str
) -> None:
    async with SimulatedModality() as sim:
        result = await asyncdicom("send", address(sim), "study", "--json", "--engine", engine)
        stored = list(sim.stored)
        assert sim.associations == 1
    assert (result.status, result.err) == (0, "")
    ordered = [HeldInstance.read(path.read_bytes()) for path in sorted(study)]
    assert [found.sop_instance_uid for found in stored] == [held.sop_instance_uid for held in ordered]
    assert [found.data for found in stored] == [bytes(held.dataset) for held in ordered]
    assert [line["path"] for line in result.rows] == [str(path.relative_to(folder)) for path in sorted(study)]
    assert all((line["reason"], line["status"], line["operation"]) == ("ok", 0, "store") for line in result.rows)
    summary = result.summary
    assert (summary["sent"], summary["failed"], summary["skipped"], summary["ok"]) == (4, 0, 0, True)
    assert summary["bytes"] == sum(len(held.dataset) for held in ordered)


async def test_only_the_contexts_that_the_files_need_are_proposed(asyncdicom: Run, study: list[Path], folder: Path) -> None:
    implicit = synthetic_instance(16, 16, seed="x", transfer_syntax=IMPLICIT_VR_LITTLE_ENDIAN)
    (folder / "study" / "implicit.dcm").write_bytes(implicit)
    async with SimulatedModality() as sim:
        assert (await asyncdicom("send", address(sim), "study")).status == 0
        (request,) = sim.requests
    proposed = sorted(context.transfer_syntaxes for context in request.contexts)
    assert proposed == [(IMPLICIT_VR_LITTLE_ENDIAN,), (EXPLICIT_VR_LITTLE_ENDIAN,)]


async def test_what_is_no_dicom_file_is_named_and_skipped(asyncdicom: Run, study: list[Path], folder: Path) -> None:
    (folder / "study" / "notes.txt").write_text("not an image")
    (folder / "study" / "empty.dcm").touch()
    os.mkfifo(folder / "study" / "pipe")
    async with SimulatedModality() as sim:
        result = await asyncdicom("send", address(sim), "study", "missing.dcm", "--json")
        assert len(sim.stored) == 4
    assert result.status == 1
    named = [line.partition(":")[0] for line in result.err.splitlines()]
    assert named == ["study/empty.dcm", "study/notes.txt", "study/pipe", "missing.dcm"]
    assert (result.summary["skipped"], result.summary["sent"], result.summary["ok"]) == (4, 4, False)


async def test_nothing_to_send_is_told_and_nobody_is_asked(asyncdicom: Run, folder: Path) -> None:
    (folder / "empty").mkdir()
    async with SimulatedModality() as sim:
        result = await asyncdicom("send", address(sim), "empty")
        assert sim.connections == 0
    assert result.status == 1
    assert "nothing to send" in result.err


async def test_an_instance_that_is_refused_is_told_with_its_file(asyncdicom: Run, study: list[Path]) -> None:
    async with SimulatedModality(store_status=0xA700) as sim:
        result = await asyncdicom("send", address(sim), "study")
    assert result.status == 1
    assert len(result.lines) == 4
    assert all("0xA700" in line for line in result.lines)
    assert "0 of 4 instances sent; 4 failure_status" in result.err


async def test_a_warning_is_a_success(asyncdicom: Run, study: list[Path]) -> None:
    async with SimulatedModality(store_status=0xB000) as sim:
        result = await asyncdicom("send", address(sim), "study", "--json")
    assert result.status == 0
    assert {line["status"] for line in result.rows} == {0xB000}


async def test_every_instance_has_its_line_when_nobody_is_there(asyncdicom: Run, study: list[Path]) -> None:
    result = await asyncdicom("send", "GONE@127.0.0.1:1", "study", "--csv")
    rows = list(csv.DictReader(result.lines))
    assert result.status == 1
    assert [row["reason"] for row in rows] == ["connect_refused"] * 4
    assert len({row["instance"] for row in rows}) == 4


async def test_the_deadline_covers_the_whole_run(asyncdicom: Run, study: list[Path]) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=30.0)) as slow:
        result = await asyncdicom("send", address(slow), "study", "--deadline", "1", "--json")
    assert result.status == 1
    assert result.summary["reasons"] == {"deadline": 4}


async def test_a_name_that_is_not_utf_8_is_sent_and_told_as_valid_json(asyncdicom: Run, folder: Path) -> None:
    path = os.fsencode(folder) + b"/caf\xe9.dcm"
    with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(synthetic_instance(16, 16))
    async with SimulatedModality() as sim:
        result = await asyncdicom("send", address(sim), ".", "--json")
    assert result.status == 0
    assert os.fsencode(result.rows[0]["path"]) == b"caf\xe9.dcm"


async def test_several_targets_each_get_everything(asyncdicom: Run, study: list[Path], folder: Path) -> None:
    async with SimulatedModality() as one, SimulatedModality() as two:
        (folder / "fleet.csv").write_text(
            f"name,ae_title,host,port,groups\none,SIM,127.0.0.1,{one.port},a\ntwo,SIM,127.0.0.1,{two.port},a\n"
        )
        result = await asyncdicom("send", "@a", "study", "--config", "fleet.csv", "--json")
        assert len(one.stored) == len(two.stored) == 4
    assert result.summary["sent"] == 8
    assert result.summary["modalities"]["one"] == {"sent": 4, "failed": 0, "reasons": {"ok": 4}}


@pytest.mark.peer("storescp")
async def test_a_foreign_archive_takes_what_is_sent(asyncdicom: Run, study: list[Path], dcmtk_storescp: Peer) -> None:
    result = await asyncdicom("send", f"STORESCP@127.0.0.1:{dcmtk_storescp.port}", *study)
    assert result.status == 0, result.err
    assert "4 of 4 instances sent" in result.err
    assert len(dcmtk_storescp.files) == 4


async def test_a_path_has_to_be_named(asyncdicom: Run) -> None:
    result = await asyncdicom("send", "X@127.0.0.1:1")
    assert result.status == 2
    assert "name at least one PATH" in result.err
