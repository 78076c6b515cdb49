"""``asyncdicom find``."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from asyncdicom.association.query import encode_dataset
from asyncdicom.testing import Behaviour, Fault, SimulatedModality
from tests.cli.conftest import PROGRAM, Run
from tests.peers.fixtures import Starter
from tests.peers.peer import Peer

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


def studies(count: int, prefix: str = "1.2") -> list[dict[str, Any]]:
    return [
        {"StudyInstanceUID": f"{prefix}.{number}", "PatientID": f"P{number}", "PatientName": f"Doe^{number}"}
        for number in range(1, count + 1)
    ]


async def test_json_gives_a_model_object_with_its_source_for_each_match_and_ends_with_the_summary(asyncdicom: Run) -> None:
    async with SimulatedModality(matches=studies(3)) as sim:
        result = await asyncdicom("find", address(sim), "-k", "PatientID", "-k", "PatientName", "--json")
        query = sim.queries[0]
    assert (result.status, result.err) == (0, "")
    assert [row["_source"] for row in result.rows] == [[address(sim)]] * 3
    assert result.rows[0]["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^1"}]}
    for row in result.rows:
        row.pop("_source")
        assert Dataset.from_json(row).StudyInstanceUID.startswith("1.2.")
    summary = result.summary
    assert (summary["ok"], summary["matches"], summary["succeeded"], summary["failed"]) == (True, 3, 1, 0)
    assert summary["modalities"][address(sim)]["reason"] == "ok"
    assert summary["modalities"][address(sim)]["matches"] == 3
    # The level's unique key is asked for even when it is not named.
    assert "StudyInstanceUID" in query
    assert query.QueryRetrieveLevel == "STUDY"


async def test_the_summary_is_there_when_nobody_answered(asyncdicom: Run) -> None:
    result = await asyncdicom("find", "GONE@127.0.0.1:1", "-k", "PatientID=1", "--json")
    assert result.status == 1
    assert len(result.lines) == 1
    assert result.summary["modalities"]["GONE@127.0.0.1:1"]["reason"] == "connect_refused"
    assert result.err.startswith("GONE@127.0.0.1:1: connect_refused")


async def test_failures_are_told_per_modality_and_the_others_matches_come_all_the_same(asyncdicom: Run) -> None:
    async with SimulatedModality(matches=studies(2)) as sim, SimulatedModality(Fault.ABORTING_OPERATION, ae_title="BAD") as bad:
        result = await asyncdicom("find", address(sim), address(bad), "--json")
    assert result.status == 1
    assert len(result.rows) == 2
    assert [line.partition(":")[0] for line in result.err.splitlines()] == [address(bad).partition(":")[0]]
    assert "aborted" in result.err
    assert result.summary["failed"] == 1


async def test_keys_levels_and_models_reach_the_peer(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        keys = ("-k", "StudyDate=20260101-", "-k", "0010,0010=D*", "-k", "PatientID", "-k", "Rows=512")
        result = await asyncdicom("find", address(sim), *keys, "--level", "series", "--model", "patient")
        query, request = sim.queries[0], sim.requests[0]
    assert result.status == 0
    assert query.QueryRetrieveLevel == "SERIES"
    assert (query.StudyDate, str(query.PatientName), query.PatientID) == ("20260101-", "D*", "")
    assert query.Rows == 512
    assert "SeriesInstanceUID" in query
    assert [context.abstract_syntax for context in request.contexts] == ["1.2.840.10008.5.1.4.1.2.1.1"]


async def test_the_patient_level_takes_the_patient_root_model(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        assert (await asyncdicom("find", address(sim), "--level", "patient")).status == 0
        assert [context.abstract_syntax for context in sim.requests[0].contexts] == ["1.2.840.10008.5.1.4.1.2.1.1"]


async def test_extended_negotiation_is_proposed_when_it_is_asked_for(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        await asyncdicom("find", address(sim), "-k", "PatientName=doe", "--fuzzy", "--relational", "--datetime", "--timezone")
        (item,) = sim.requests[0].extended
    assert item.information == bytes([1, 1, 1, 1])


async def test_a_limit_gives_exactly_so_many_rows_and_stops_the_peer(asyncdicom: Run) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.001)
    async with SimulatedModality(endless, matches=studies(1)) as sim:
        result = await asyncdicom("find", address(sim), "--limit", "7", "--json")
        assert sim.cancels_received == 1
    assert (result.status, result.err) == (0, "")
    assert len(result.rows) == result.summary["matches"] == 7
    assert result.summary["limit_reached"] is True


async def test_a_limit_over_several_archives_is_that_of_them_all(asyncdicom: Run) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.001)
    async with SimulatedModality(endless, matches=studies(1)) as one, SimulatedModality(endless, matches=studies(1)) as two:
        result = await asyncdicom("find", address(one), address(two), "--limit", "25", "--json")
    assert result.status == 0, result.err
    assert len(result.rows) == 25


async def test_merge_gives_what_two_archives_hold_once_with_both_sources(asyncdicom: Run) -> None:
    async with SimulatedModality(matches=studies(3)) as one, SimulatedModality(matches=studies(5), ae_title="TWO") as two:
        result = await asyncdicom("find", address(one), address(two), "--merge", "--json")
    sources = {row["0020000D"]["Value"][0]: set(row["_source"]) for row in result.rows}
    assert len(result.rows) == len(sources) == 5
    assert sources["1.2.1"] == {address(one), address(two)}
    assert sources["1.2.5"] == {address(two)}


async def test_csv_has_a_column_for_each_key_and_the_unique_one_and_no_summary(asyncdicom: Run) -> None:
    match = {
        "StudyInstanceUID": "1.2.3",
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "ModalitiesInStudy": ["CT", "SR"],
        "StudyDescription": 'quoted "well", really',
        "PatientWeight": "70.50",
    }
    keys = ("PatientName", "ModalitiesInStudy=CT", "StudyDescription", "PatientWeight", "AccessionNumber")
    async with SimulatedModality(matches=[match]) as sim:
        words = [word for key in keys for word in ("-k", key)]
        result = await asyncdicom("find", address(sim), *words, "--csv")
    rows = list(csv.reader(result.lines))
    assert result.status == 0
    assert rows[0] == [*(key.partition("=")[0] for key in keys), "StudyInstanceUID"]
    assert rows[1:] == [[match["PatientName"], "CT\\SR", match["StudyDescription"], "70.50", "", "1.2.3"]]


async def test_a_match_that_cannot_be_decoded_is_counted_and_named_and_the_others_come(
    asyncdicom: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SimulatedModality(matches=studies(3)) as sim:
        good = SimulatedModality.encoded_matches

        def damaged(self: SimulatedModality, identifier: Dataset, transfer_syntax: str) -> Iterable[bytes]:
            for number, encoded in enumerate(good(self, identifier, transfer_syntax)):
                yield encoded[:-3] if number == 1 else encoded

        monkeypatch.setattr(SimulatedModality, "encoded_matches", damaged)
        result = await asyncdicom("find", address(sim), "--json")
    assert result.status == 1
    assert [row["0020000D"]["Value"] for row in result.rows] == [["1.2.1"], ["1.2.3"]]
    assert f"{address(sim)}: 1 of its matches could not be decoded" in result.err
    assert result.summary["undecodable"] == result.summary["modalities"][address(sim)]["undecodable"] == 1


async def test_plain_lines_cannot_move_the_cursor(asyncdicom: Run) -> None:
    async with SimulatedModality(matches=[{"StudyInstanceUID": "1.2", "PatientComments": "\x1b[2Jgone\tand\nbroken"}]) as sim:
        result = await asyncdicom("find", address(sim), "-k", "PatientComments")
    (line,) = result.lines
    assert line.split("\t")[1] == "1.2"
    assert line.split("\t")[0].replace("\N{REPLACEMENT CHARACTER}", "?") == "?[2Jgone?and?broken"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name at least one TARGET"),
        (("X@127.0.0.1:1", "-k", "PatientNam=x"), "did you mean PatientName?"),
        (("X@127.0.0.1:1", "-k", "PatientID=1", "-k", "PatientID=2"), "-k PatientID is there twice"),
        (("X@127.0.0.1:1", "-k", "0010,0020=1", "-k", "PatientID=2"), "-k PatientID is there twice"),
        (("X@127.0.0.1:1", "-k", "Rows=many"), "Rows"),
        (("X@127.0.0.1:1", "-k"), "-k"),
        (("X@127.0.0.1:1", "--limit", "0"), "--limit 0"),
        (("X@127.0.0.1:1", "--level", "instance"), "image"),
        (("X@127.0.0.1:1", "--level", "patient", "--model", "study"), "use model patient"),
    ],
)
async def test_a_mistake_of_usage_is_told_before_anybody_is_asked(asyncdicom: Run, words: tuple[str, ...], said: str) -> None:
    result = await asyncdicom("find", *words)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


async def test_a_reader_that_goes_away_ends_it_quietly(folder: Path) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.001)
    async with SimulatedModality(endless, matches=studies(1)) as sim:
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "find", address(sim), "--json", stdout=write, stderr=asyncio.subprocess.PIPE, cwd=folder
        )
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as stream:
            await asyncio.get_running_loop().run_in_executor(None, stream.read, 1)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_with_a_summary_of_what_is_known(folder: Path, number: signal.Signals, status: int) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING, interval=0.01)
    async with SimulatedModality(endless, matches=studies(1)) as sim:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "find", address(sim), "--json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder,
        )  # fmt: skip
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), 20)
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == status
    assert b"Traceback" not in err
    summary = json.loads(out.splitlines()[-1])["_summary"]
    assert (summary["interrupted"], summary["ok"]) == (True, False)
    assert summary["modalities"][address(sim)]["reason"] == "cancelled"


async def test_a_reader_that_is_slow_slows_the_archive_down_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, sent = 12_000, 0

    def many(self: SimulatedModality, identifier: Dataset, transfer_syntax: str) -> Iterable[bytes]:
        nonlocal sent
        match = Dataset()
        match.StudyInstanceUID = "1.2.3"
        match.PatientComments = "x" * 2_000
        encoded = encode_dataset(match, transfer_syntax)
        for _ in range(total):
            sent += 1
            yield encoded

    monkeypatch.setattr(SimulatedModality, "encoded_matches", many)
    async with SimulatedModality() as sim:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "find", address(sim), "--json", stdout=asyncio.subprocess.PIPE, cwd=folder, limit=1 << 12
        )
        assert process.stdout is not None
        before = -1
        while before < sent or not sent:
            before = sent
            await asyncio.sleep(0.5)
        # 24 MB do not fit into all the buffers between here and there.
        assert sent < total
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    lines = out.splitlines()
    assert process.returncode == 0
    assert json.loads(lines[-1])["_summary"]["matches"] == len(lines) - 1 == total


async def test_ctrl_c_ends_it_also_when_its_reader_has_stopped_reading(folder: Path) -> None:
    endless = Behaviour(Fault.ENDLESS_PENDING)
    async with SimulatedModality(endless, matches=studies(1)) as sim:
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "find", address(sim), "--json", stdout=write, stderr=asyncio.subprocess.PIPE, cwd=folder
        )
        os.close(write)
        # More than the pipe holds: the thread that writes hangs in the middle of it.
        async with asyncio.timeout(20):
            while len(select.select([read], [], [], 0)[0]) == 0:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
        os.close(read)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.peer("dcmqrscp", "dcmqridx")
async def test_a_foreign_archive_tells_what_it_holds(asyncdicom: Run, dcmtk_qrscp: Peer) -> None:
    target = f"DCMQRSCP@127.0.0.1:{dcmtk_qrscp.port}"
    result = await asyncdicom("find", target, "-k", "PatientID=P1", "-k", "PatientName", "--json")
    assert result.status == 0, result.err
    (row,) = result.rows
    assert row["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    study = row["0020000D"]["Value"][0]
    series = await asyncdicom("find", target, "--level", "series", "-k", f"StudyInstanceUID={study}", "-k", "Modality", "--csv")
    assert series.status == 0, series.err
    assert [found["Modality"] for found in csv.DictReader(series.lines)] == ["CT"]


@pytest.mark.peer("wlmscpfs", "dump2dcm")
async def test_a_foreign_worklist_tells_its_steps(asyncdicom: Run, start_wlmscpfs: Starter[Peer]) -> None:
    worklist = start_wlmscpfs(items=2)
    target = f"WORKLIST@127.0.0.1:{worklist.port}"
    keys = ("-k", "PatientName", "-k", "Modality=CT", "-k", "ScheduledStationAETitle", "-k", "PatientID")
    result = await asyncdicom("find", target, "--model", "worklist", *keys, "--csv")
    assert result.status == 0, result.err
    rows = sorted(csv.DictReader(result.lines), key=lambda row: row["PatientID"])
    assert [(row["PatientID"], row["Modality"], row["ScheduledStationAETitle"]) for row in rows] == [
        ("W1", "CT", "CT1"),
        ("W2", "CT", "CT1"),
    ]
