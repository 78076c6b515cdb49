"""``asyncdicom get`` and ``asyncdicom move``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from asyncdicom.testing import Behaviour, Fault, HeldInstance, SimulatedModality, synthetic_study, synthetic_uid
from tests.cli.conftest import Run
from tests.peers.fixtures import Starter
from tests.peers.peer import Address, Peer

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


def study(seed: str, count: int = 3) -> list[bytes]:
    return [file for _, file in synthetic_study(count, 16, 16, seed=seed)]


def uid(seed: str) -> str:
    return synthetic_uid("study", seed)


def row(seed: str, *sources: str) -> str:
    """A line of ``find --json``."""
    fields: dict[str, object] = {"0020000D": {"vr": "UI", "Value": [uid(seed)]}, "00100020": {"vr": "LO", "Value": ["P"]}}
    if sources:
        fields["_source"] = list(sources)
    return json.dumps(fields)


def files(folder: Path) -> dict[str, bytes]:
    """The datasets in a folder by SOP Instance UID."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            held = HeldInstance.read(path.read_bytes())
            found[held.sop_instance_uid] = bytes(held.dataset)
    return found


def datasets(study: list[bytes]) -> dict[str, bytes]:
    return {held.sop_instance_uid: bytes(held.dataset) for held in map(HeldInstance.read, study)}


# -- get --------------------------------------------------------------------------------------------------------------


async def test_get_puts_a_study_into_a_folder_with_its_bytes_untouched(asyncdicom: Run, folder: Path) -> None:
    sent = study("a")
    async with SimulatedModality(instances=[*sent, *study("b")]) as sim:
        result = await asyncdicom("get", address(sim), "--into", "data", "-k", f"StudyInstanceUID={uid('a')}", "--json")
    assert (result.status, result.err) == (0, "")
    assert files(folder / "data") == datasets(sent)
    instances = [found for found in result.rows if "instance" in found]
    assert {found["instance"] for found in instances} == set(datasets(sent))
    assert all((folder / found["path"]).is_file() and found["ok"] for found in instances)
    (query,) = (found for found in result.rows if "sub_operations" in found)
    assert query["keys"] == {"StudyInstanceUID": uid("a")}
    assert (query["sub_operations"]["completed"], query["received"], query["ok"]) == (3, 3, True)
    summary = result.summary
    assert (summary["ok"], summary["instances"], summary["queries"], summary["reasons"]) == (True, 3, 1, {"ok": 1})


@pytest.mark.parametrize("durability", ["full", "none"])
async def test_get_keeps_as_safely_as_it_is_told(asyncdicom: Run, folder: Path, durability: str) -> None:
    async with SimulatedModality(instances=study("a")) as sim:
        words = ("--into", "data", "-k", f"StudyInstanceUID={uid('a')}", "--durability", durability)
        result = await asyncdicom("get", address(sim), *words)
    assert result.status == 0
    assert result.err.startswith("3 instances fetched")
    assert len(files(folder / "data")) == 3


async def test_get_takes_the_matches_of_an_earlier_find_and_skips_its_summary(asyncdicom: Run, folder: Path) -> None:
    matches = [{"StudyInstanceUID": uid(seed)} for seed in "abc"]
    async with SimulatedModality(instances=[*study("a"), *study("b"), *study("c")], matches=matches) as sim:
        found = await asyncdicom("find", address(sim), "--json")
        (folder / "matches.ndjson").write_text(found.out)
        by_file = await asyncdicom("get", address(sim), "--into", "one", "--from", "matches.ndjson", "--json")
        by_pipe = await asyncdicom("get", address(sim), "--into", "two", "--from", "-", "--json", stdin=found.out)
    for result, name in ((by_file, "one"), (by_pipe, "two")):
        assert (result.status, result.err) == (0, "")
        assert result.summary["queries"] == 3
        assert len(files(folder / name)) == 9


async def test_each_match_is_asked_of_the_archive_that_gave_it(asyncdicom: Run, folder: Path) -> None:
    async with SimulatedModality(instances=study("a")) as one, SimulatedModality(instances=study("b")) as two:
        (folder / "fleet.csv").write_text(
            "name,ae_title,host,port,groups\n"
            f"one,SIM,127.0.0.1,{one.port},archives\ntwo,SIM,127.0.0.1,{two.port},archives\nthree,SIM,127.0.0.1,1,other\n"
        )
        lines = "\n".join([row("a", "one"), row("b", "two", "three"), row("c", "three")])
        words = ("--into", "data", "--from", "-", "--config", "fleet.csv", "--json")
        result = await asyncdicom("get", "@archives", *words, stdin=lines)
        assert (one.gets, two.gets) == (1, 1)
    assert result.status == 1
    assert result.err == "--from: line 3: its _source names none of the archives that SOURCE names\n"
    assert len(files(folder / "data")) == 6
    assert result.summary["bad_lines"] == 1
    assert {name: found["succeeded"] for name, found in result.summary["modalities"].items()} == {"one": 1, "two": 1}


async def test_lines_that_are_no_matches_are_named_by_number_and_the_others_count(asyncdicom: Run) -> None:
    lines = "\n".join(["secret rubbish", "[1]", '{"00100020": {"vr": "LO", "Value": ["secret"]}}', "", row("a")])
    async with SimulatedModality(instances=study("a")) as sim:
        result = await asyncdicom("get", address(sim), "--into", "data", "--from", "-", stdin=lines)
    assert result.status == 1
    assert [line.split(":")[1] for line in result.err.splitlines()[:3]] == [" line 1", " line 2", " line 3"]
    assert "StudyInstanceUID" in result.err
    assert "secret" not in result.err
    assert "3 instances fetched" in result.err


async def test_rows_of_a_deeper_level_name_a_study_once(asyncdicom: Run) -> None:
    async with SimulatedModality(instances=study("a")) as sim:
        await asyncdicom("get", address(sim), "--into", "data", "--from", "-", stdin="\n".join([row("a")] * 5))
        assert sim.gets == 1


async def test_the_level_decides_which_keys_are_taken_from_a_row(asyncdicom: Run) -> None:
    fields = {
        "00100020": {"vr": "LO", "Value": ["P"]},
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3"]},
        "00080018": {"vr": "UI", "Value": ["1.2.3.4"]},
    }
    async with SimulatedModality() as sim:
        for words in (("--level", "series"), ("--level", "image", "--model", "patient"), ("--level", "patient")):
            await asyncdicom("get", address(sim), "--into", "data", "--from", "-", *words, stdin=json.dumps(fields))
        asked = [{element.keyword for element in query} - {"QueryRetrieveLevel"} for query in sim.queries]
    assert asked == [
        {"StudyInstanceUID", "SeriesInstanceUID"},
        {"PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"},
        {"PatientID"},
    ]


async def test_what_an_archive_does_not_give_is_told_and_the_others_go_on(asyncdicom: Run, folder: Path) -> None:
    async with SimulatedModality(instances=study("a")) as good, SimulatedModality(Fault.ABORTING_OPERATION) as bad:
        (folder / "fleet.csv").write_text(
            f"name,ae_title,host,port,groups\ngood,SIM,127.0.0.1,{good.port},a\nbad,SIM,127.0.0.1,{bad.port},a\n"
        )
        words = ("--into", "data", "-k", f"StudyInstanceUID={uid('a')}", "--config", "fleet.csv", "--json")
        result = await asyncdicom("get", "@a", *words)
    assert result.status == 1
    assert result.summary["reasons"] == {"ok": 1, "aborted": 1}
    assert len(files(folder / "data")) == 3


async def test_the_deadline_covers_all_queries_and_each_has_its_line(asyncdicom: Run) -> None:
    lines = "\n".join(row(seed) for seed in "abcd")
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=30.0)) as slow:
        words = ("--into", "data", "--from", "-", "--deadline", "1", "--json")
        result = await asyncdicom("get", address(slow), *words, stdin=lines)
    assert result.status == 1
    assert [found["reason"] for found in result.rows] == ["deadline"] * 4
    assert result.summary["reasons"] == {"deadline": 4}


async def test_a_folder_that_cannot_be_used_is_told(asyncdicom: Run, folder: Path) -> None:
    (folder / "file").write_text("in the way")
    result = await asyncdicom("get", "X@127.0.0.1:1", "--into", "file", "-k", "StudyInstanceUID=1.2")
    assert result.status == 2
    assert "--into file" in result.err


@pytest.mark.peer("dcmqrscp", "dcmqridx")
async def test_get_fetches_from_a_foreign_archive(asyncdicom: Run, dcmtk_qrscp: Peer, study: list[Path], folder: Path) -> None:
    target = f"DCMQRSCP@127.0.0.1:{dcmtk_qrscp.port}"
    found = await asyncdicom("find", target, "-k", "PatientID=P1", "--json")
    result = await asyncdicom("get", target, "--into", "data", "--from", "-", stdin=found.out)
    assert result.status == 0, result.err
    kept = {dcmread(path).SOPInstanceUID for path in (folder / "data").rglob("*.dcm")}
    assert kept == {dcmread(path).SOPInstanceUID for path in study}


# -- move -------------------------------------------------------------------------------------------------------------


async def test_move_has_an_archive_send_to_somebody(asyncdicom: Run) -> None:
    async with SimulatedModality(ae_title="STATION") as station:
        destinations = {"STATION": (station.host, station.port)}
        async with SimulatedModality(instances=study("a"), destinations=destinations) as sim:
            words = ("--to", "STATION", "-k", f"StudyInstanceUID={uid('a')}")
            result = await asyncdicom("move", address(sim), *words, "--json")
            unknown = await asyncdicom("move", address(sim), "--to", "NOBODY", *words[2:], "--json")
        assert {stored.sop_instance_uid for stored in station.stored} == set(datasets(study("a")))
    assert (result.status, result.err) == (0, "")
    (line,) = result.rows
    assert line["sub_operations"] == {"remaining": 0, "completed": 3, "failed": 0, "warning": 0}
    assert (result.summary["instances"], result.summary["sub_operations"]["completed"]) == (3, 3)
    assert unknown.status == 1
    assert (unknown.rows[0]["reason"], unknown.rows[0]["status"]) == ("failure_status", 0xA801)


async def test_sub_operations_that_failed_are_counted_and_exit_with_1(asyncdicom: Run) -> None:
    async def deliver(delivery: object) -> int:
        return 0xA700

    async with SimulatedModality(instances=study("a"), deliver=deliver) as sim:
        words = ("--to", "STATION", "-k", f"StudyInstanceUID={uid('a')}")
        result = await asyncdicom("move", address(sim), *words)
    assert result.status == 1
    assert "1 of 1 queries failed: 1 failure_status" in result.err


@pytest.mark.peer("dcmqrscp", "dcmqridx", "storescp")
async def test_a_foreign_archive_moves_to_a_foreign_station(
    asyncdicom: Run, start_dcmqrscp: Starter[Peer], dcmtk_storescp: Peer, study: list[Path]
) -> None:
    archive = start_dcmqrscp(instances=study, destinations=[Address("STORESCP", dcmtk_storescp.port)])
    target = f"DCMQRSCP@127.0.0.1:{archive.port}"
    found = await asyncdicom("find", target, "-k", "PatientID=P1", "--json")
    result = await asyncdicom("move", target, "--to", "STORESCP", "--from", "-", "--json", stdin=found.out)
    assert result.status == 0, result.err
    assert len(dcmtk_storescp.files) == result.summary["instances"] == 3


# -- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["get"], "SOURCE"),
        (["get", "X@127.0.0.1:1", "-k", "StudyInstanceUID=1"], "--into"),
        (["get", "X@127.0.0.1:1", "--into", "d"], "say what, with -k StudyInstanceUID=..."),
        (["get", "X@127.0.0.1:1", "--into", "d", "-k", "StudyInstanceUID"], "say what, with -k StudyInstanceUID=..."),
        (["get", "X@127.0.0.1:1", "--into", "d", "--level", "series", "-k", "StudyInstanceUID=1"], "-k SeriesInstanceUID=..."),
        (["get", "X@127.0.0.1:1", "--into", "d", "-k", "StudyInstanceUID=1", "--from", "m"], "choose one"),
        (["get", "X@127.0.0.1:1", "--into", "d", "--from", "missing.ndjson"], "--from missing.ndjson: cannot be read"),
        (["move", "X@127.0.0.1:1", "-k", "StudyInstanceUID=1"], "--to"),
        (["move", "X@127.0.0.1:1", "--to", "A\\B", "-k", "StudyInstanceUID=1"], "--to"),
        (["move", "X@127.0.0.1:1", "--to", "A", "--level", "patient", "--model", "study"], "use model patient"),
    ],
)
async def test_a_mistake_of_usage_is_told_before_anybody_is_asked(asyncdicom: Run, words: list[str], said: str) -> None:
    result = await asyncdicom(*words)
    assert (result.status, result.out) == (2, "")
    assert said in result.err
