"""``asyncdicom echo``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from asyncdicom.testing import Behaviour, Fault, SimulatedModality, simulate
from tests.cli.conftest import Run
from tests.peers.peer import Peer

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking

FIELDS = {
    "modality": str,
    "ae_title": str,
    "host": str,
    "port": int,
    "ok": bool,
    "reason": str,
    "status": int | None,
    "duration_ms": float,
    "phases_ms": dict,
    "peer": dict,
    "rejected": dict,
}
PHASES = ["resolve", "connect", "tls", "associate", "operation", "release"]


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


async def test_a_target_that_answers_is_ok_and_the_exit_status_is_0(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        result = await asyncdicom("echo", address(sim))
    assert (result.status, result.err) == (0, "")
    assert result.lines[0].split("\t")[:3] == [address(sim), "", "ok"]


async def test_json_has_every_field_of_the_contract_and_no_other(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim, SimulatedModality(Fault.REJECTING) as rejecting:
        result = await asyncdicom("echo", address(sim), address(rejecting), "--json")
    assert result.status == 1
    for row in map(json.loads, result.lines):
        assert list(row) == list(FIELDS)
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items())
        assert list(row["phases_ms"]) == PHASES
        assert list(row["peer"]) == ["implementation_class_uid", "implementation_version"]
        assert list(row["rejected"]) == ["result", "source", "reason"]
    ok, rejected = sorted(map(json.loads, result.lines), key=lambda row: not row["ok"])
    assert (ok["status"], ok["reason"], ok["rejected"]["result"]) == (0, "ok", None)
    assert (rejected["status"], rejected["reason"]) == (None, "rejected_permanent")
    assert rejected["rejected"] == {"result": 1, "source": 1, "reason": 3}


async def test_each_target_gets_one_association_and_one_echo(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        await asyncdicom("echo", address(sim), address(sim))
        assert (sim.connections, sim.associations, sim.echoes, sim.releases_received) == (1, 1, 1, 1)


async def test_all_asks_every_modality_of_the_inventory_once(asyncdicom: Run, folder: Path) -> None:
    async with simulate(30, faults="refusing=3,failure_status=2") as fleet:
        (folder / "fleet.csv").write_text(fleet.inventory_csv())
        result = await asyncdicom("echo", "--all", "--config", "fleet.csv", "--json")
    rows = list(map(json.loads, result.lines))
    assert result.status == 1
    assert {row["modality"] for row in rows} == {modality.name for modality in fleet.inventory()}
    reasons = sorted(row["reason"] for row in rows if not row["ok"])
    assert reasons == ["connect_refused"] * 3 + ["failure_status"] * 2


async def test_groups_and_names_are_looked_up_in_the_configuration_of_this_folder(asyncdicom: Run, folder: Path) -> None:
    async with SimulatedModality() as sim:
        (folder / "asyncdicom.toml").write_text(
            f'[ae]\ntitle = "WATCHER"\n[[modality]]\nname = "ct1"\nae_title = "SIM"\nhost = "127.0.0.1"\nport = {sim.port}\n'
            'groups = ["scanners"]\n'
        )
        for target in ("ct1", "@scanners", "@all"):
            result = await asyncdicom("echo", target)
            assert result.status == 0, result.err
            assert result.out.startswith("ct1\t")
        assert {request.calling_ae_title for request in sim.requests} == {"WATCHER"}


async def test_the_variable_names_the_configuration_where_none_lies_here(asyncdicom: Run, tmp_path: Path) -> None:
    async with SimulatedModality() as sim:
        elsewhere = tmp_path / "elsewhere.csv"
        elsewhere.write_text(f"name,ae_title,host,port\nct1,SIM,127.0.0.1,{sim.port}\n")
        result = await asyncdicom("echo", "ct1", env={"ASYNCDICOM_CONFIG": str(elsewhere)})
    assert result.status == 0


async def test_csv_has_a_header_and_a_row_for_each_target(asyncdicom: Run) -> None:
    async with SimulatedModality() as sim:
        result = await asyncdicom("echo", address(sim), "REFUSING@127.0.0.1:1", "--csv")
    rows = {row["modality"]: row for row in csv.DictReader(result.lines)}
    assert rows[address(sim)]["ok"] == "true"
    assert rows[address(sim)]["status"] == "0"
    assert rows["REFUSING@127.0.0.1:1"]["reason"] == "connect_refused"
    assert rows["REFUSING@127.0.0.1:1"]["status"] == ""


async def test_the_deadline_covers_the_whole_run(asyncdicom: Run) -> None:
    async with SimulatedModality(Behaviour(Fault.SLOW, delay=20.0)) as slow:
        result = await asyncdicom("echo", address(slow), "--deadline", "0.5", "--json")
    (row,) = map(json.loads, result.lines)
    assert (result.status, row["reason"]) == (1, "deadline")
    assert row["duration_ms"] < 1500


@pytest.mark.parametrize("engine", ["native", "pynetdicom"])
async def test_both_engines_introduce_themselves_as_they_are_told(asyncdicom: Run, engine: str) -> None:
    async with SimulatedModality() as sim:
        result = await asyncdicom("echo", address(sim), "--engine", engine, "--calling", "ME")
        assert result.status == 0
        assert sim.requests[0].calling_ae_title == "ME"


@pytest.mark.peer("storescp")
async def test_a_foreign_server_answers(asyncdicom: Run, dcmtk_storescp: Peer) -> None:
    result = await asyncdicom("echo", f"STORESCP@127.0.0.1:{dcmtk_storescp.port}", "--json")
    assert result.status == 0
    assert json.loads(result.out)["peer"]["implementation_version"].startswith("OFFIS_DCMTK")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name at least one TARGET"),
        (["ct1"], "'ct1' is a name, and there is no configuration"),
        (["PACS@127.0.0.1"], "write AET@host:port"),
        (["X@127.0.0.1:99999"], "a TCP port from 1 to 65535"),
        (["--all"], "nobody to ask: there is no configuration"),
        (["--all", "--config", "missing.toml"], "missing.toml: there is no such file"),
        (["X@127.0.0.1:1", "--config", "missing.toml"], "missing.toml: there is no such file"),
        (["X@127.0.0.1:1", "--json", "--csv"], "choose one"),
        (["X@127.0.0.1:1", "--deadline", "0"], "--deadline 0: write a number of seconds above 0"),
        (["X@127.0.0.1:1", "--deadline", "soon"], "--deadline"),
        (["X@127.0.0.1:1", "--concurrency", "0"], "--concurrency 0"),
        (["X@127.0.0.1:1", "--calling", "A\\B"], "--calling"),
        (["X@127.0.0.1:1", "--engine", "other"], "native"),
        (["X@127.0.0.1:1", "--frobnicate"], "--frobnicate"),
    ],
)
async def test_a_mistake_of_usage_is_told_in_words_and_exits_with_2(asyncdicom: Run, words: list[str], said: str) -> None:
    result = await asyncdicom("echo", *words)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


async def test_a_name_that_is_nearly_right_is_proposed(asyncdicom: Run, folder: Path) -> None:
    (folder / "fleet.csv").write_text("name,ae_title,host,port\nradiology-ct1,CT1,127.0.0.1,104\n")
    result = await asyncdicom("echo", "radiology-ct2", "--config", "fleet.csv")
    assert result.status == 2
    assert "did you mean radiology-ct1?" in result.err


async def test_every_mistake_of_a_configuration_is_told(asyncdicom: Run, folder: Path) -> None:
    (folder / "asyncdicom.toml").write_text('[fleet]\nconcurrency = 0\n[[modality]]\nname = "a"\nport = 0\n')
    result = await asyncdicom("echo", "--all")
    assert result.status == 2
    for path in ("fleet.concurrency", "modality[0].ae_title", "modality[0].host", "modality[0].port"):
        assert path in result.err
