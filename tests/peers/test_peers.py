"""Each foreign peer answers a foreign request, so that a failing test against it speaks of us and not of the fixture."""

from __future__ import annotations

import http.server
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from pydicom import dcmread

from tests.peers import dcmtk, programs, pynetdicom_apps
from tests.peers.certificates import Certificates
from tests.peers.fixtures import Starter
from tests.peers.orthanc import Orthanc
from tests.peers.peer import Address, Peer
from tests.peers.programs import MissingProgram, program
from tests.peers.prometheus import Prometheus, promtool, scrape_job
from tests.peers.running import ProgramDied, ProgramTimeout, run_program, run_program_async, serving


def _uids(paths: list[Path]) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths}


@pytest.mark.peer("echoscu")
@pytest.mark.parametrize(
    "fixture",
    [
        "dcmtk_storescp",
        "dcmtk_qrscp",
        "dcmtk_worklist",
        "orthanc_peer",
        "pynetdicom_echoscp",
        "pynetdicom_storescp",
        "pynetdicom_qrscp",
    ],
)
def test_every_peer_answers_an_echo_of_dcmtk_and_of_pynetdicom(fixture: str, request: pytest.FixtureRequest) -> None:
    peer: Peer = request.getfixturevalue(fixture)
    assert dcmtk.echoscu(peer).run().returncode == 0
    answered = pynetdicom_apps.echoscu(peer).run()
    assert answered.returncode == 0, answered.stderr
    assert "Success" in answered.stdout + answered.stderr


def test_a_tls_peer_answers_its_authority_alone(dcmtk_tls_storescp: Peer, certificates: Certificates) -> None:
    assert dcmtk.echoscu(dcmtk_tls_storescp, tls=certificates.client).run().returncode == 0
    for stranger in (certificates.foreign, certificates.expired, None):
        assert dcmtk.echoscu(dcmtk_tls_storescp, tls=stranger, extra=["-to", "3", "-ta", "3"]).run().returncode != 0


@pytest.mark.parametrize("nodelay", [True, False])
def test_storescp_writes_what_storescu_sends(dcmtk_storescp: Peer, study: list[Path], nodelay: bool) -> None:
    sent = dcmtk.storescu(dcmtk_storescp, study, nodelay=nodelay).run()
    assert sent.returncode == 0, sent.stderr
    assert _uids(dcmtk_storescp.files) == _uids(study)


def test_dcmsend_sends_a_folder(dcmtk_storescp: Peer, study: list[Path]) -> None:
    sent = dcmtk.dcmsend(dcmtk_storescp, [study[0].parent]).run()
    assert sent.returncode == 0, sent.stderr
    assert _uids(dcmtk_storescp.files) == _uids(study)


def test_pynetdicom_stores_to_its_own_storescp(pynetdicom_storescp: Peer, study: list[Path]) -> None:
    sent = pynetdicom_apps.storescu(pynetdicom_storescp, study[0].parent).run()
    assert sent.returncode == 0, sent.stderr
    assert _uids(pynetdicom_storescp.files) == _uids(study)


def test_dcmqrscp_finds_moves_and_gets_what_it_was_given(
    start_storescp: Starter[Peer], start_dcmqrscp: Starter[Peer], study: list[Path], tmp_path: Path
) -> None:
    destination = start_storescp(ae_title="DESTINATION")
    archive = start_dcmqrscp(instances=study, destinations=[destination])
    study_uid = str(dcmread(study[0]).StudyInstanceUID)
    keys = {"QueryRetrieveLevel": "STUDY", "PatientID": "P1", "StudyInstanceUID": ""}

    found = dcmtk.findscu(archive, keys).run()
    assert study_uid in found.stdout + found.stderr

    keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study_uid}
    moved = dcmtk.movescu(archive, keys, "DESTINATION").run()
    assert moved.returncode == 0, moved.stderr
    assert _uids(destination.files) == _uids(study)

    into = tmp_path / "got"
    into.mkdir()
    got = dcmtk.getscu(archive, keys, into).run()
    assert got.returncode == 0, got.stderr
    assert _uids(sorted(into.iterdir())) == _uids(study)


def test_wlmscpfs_finds_its_worklist_items(start_wlmscpfs: Starter[Peer]) -> None:
    worklist = start_wlmscpfs(items=3)
    found = dcmtk.findscu(worklist, {"PatientID": "", "PatientName": "Doe*"}, model="-W").run()
    said = found.stdout + found.stderr
    assert found.returncode == 0
    assert all(f"[W{number}" in said for number in (1, 2, 3))


def test_pynetdicom_qrscp_finds_moves_and_gets_what_was_stored(
    start_storescp: Starter[Peer], start_pynetdicom_qrscp: Starter[Peer], study: list[Path], tmp_path: Path
) -> None:
    destination = start_storescp(ae_title="DESTINATION")
    archive = start_pynetdicom_qrscp(destinations=[destination])
    assert dcmtk.storescu(archive, study).run().returncode == 0
    study_uid = str(dcmread(study[0]).StudyInstanceUID)

    keys = {"QueryRetrieveLevel": "STUDY", "PatientID": "P1", "StudyInstanceUID": ""}
    found = pynetdicom_apps.findscu(archive, keys).run()
    assert study_uid in found.stdout + found.stderr

    keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study_uid}
    assert pynetdicom_apps.movescu(archive, keys, "DESTINATION").run().returncode == 0
    assert _uids(destination.files) == _uids(study)

    into = tmp_path / "got"
    into.mkdir()
    assert pynetdicom_apps.getscu(archive, keys, into).run().returncode == 0
    assert _uids(sorted(into.iterdir())) == _uids(study)


def test_orthanc_keeps_what_is_stored_and_moves_it_on(
    start_storescp: Starter[Peer], start_orthanc: Starter[Orthanc], study: list[Path]
) -> None:
    destination = start_storescp(ae_title="DESTINATION")
    archive = start_orthanc(known=[destination])
    assert dcmtk.storescu(archive, study[:2]).run().returncode == 0
    archive.upload(study[2])
    assert archive.sop_instance_uids() == _uids(study)
    assert archive.get("/system")["DicomAet"] == "ORTHANC"

    study_uid = str(dcmread(study[0]).StudyInstanceUID)
    keys = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study_uid}
    moved = dcmtk.movescu(archive, keys, "DESTINATION", calling="DESTINATION").run()
    assert moved.returncode == 0, moved.stderr
    assert _uids(destination.files) == _uids(study)


async def test_orthanc_answers_without_blocking_the_loop(orthanc_peer: Orthanc) -> None:
    assert await orthanc_peer.get_async("/instances") == []


class _Exposition(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"answer 42\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the scrapes are not of interest."""


@pytest.fixture
def exposition() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Exposition) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_prometheus_scrapes_its_targets(start_prometheus: Starter[Prometheus], exposition: str) -> None:
    prometheus = start_prometheus(jobs=[scrape_job([exposition])])
    prometheus.wait_until_scraped()
    (sample,) = prometheus.query("answer")
    assert sample["value"][1] == "42"
    assert sample["metric"]["job"] == "asyncdicom"


@pytest.mark.peer("promtool")
def test_promtool_refuses_a_wrong_expression(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: wrong, rules: [{record: 'a:b', expr: 'sum('}]}]")
    assert promtool("check", "rules", rules).returncode != 0


def test_a_peer_is_gone_after_its_owner(tmp_path: Path, study: list[Path]) -> None:
    with dcmtk.dcmqrscp(tmp_path / "archive", instances=study) as peer:
        pid = peer.server.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert dcmtk.echoscu(peer, extra=["-to", "2"]).run().returncode != 0


def test_a_server_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        serving(["sh", "-c", "echo no such option; exit 3"], log=tmp_path / "log") as server,
        pytest.raises(ProgramDied, match="ended with 3:\nno such option"),
    ):
        server.wait_until(lambda: False)


def test_a_program_is_killed_at_its_deadline_with_all_that_it_started() -> None:
    start = time.monotonic()
    # The grandchild holds the pipe open: killing the shell alone would not end the wait.
    with pytest.raises(ProgramTimeout, match="did not end within"):
        run_program(["sh", "-c", "sleep 60 & wait"], timeout=0.2)
    assert time.monotonic() - start < 5


async def test_the_asynchronous_form_does_the_same_without_blocking_the_loop(no_leaks: object) -> None:
    completed = await run_program_async(["sh", "-c", "cat; echo err >&2; exit 5"], stdin=b"in")
    assert (completed.returncode, completed.stdout, completed.stderr) == (5, "in", "err\n")
    with pytest.raises(ProgramTimeout):
        await run_program_async(["sh", "-c", "sleep 60 & wait"], timeout=0.2)


async def test_cancelling_the_asynchronous_form_kills_the_program(no_leaks: object, tmp_path: Path) -> None:
    with anyio.move_on_after(0.2):
        await run_program_async(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60 & wait"])
    pid = await anyio.Path(tmp_path / "pid").read_text()
    assert not await anyio.Path(f"/proc/{pid.strip()}").exists()


def test_dcmtk_is_never_taken_for_the_scripts_of_the_same_name() -> None:
    said = run_program([program("echoscu"), "--version"]).stdout
    assert said.startswith("$dcmtk: echoscu")


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.peers.programs.find_program", lambda name: None)
    with pytest.raises(MissingProgram, match="Debian package dcmtk"):
        program("storescp")


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/etc/debian_version").exists(), reason="installs on Debian as root alone")
@pytest.mark.parametrize("ci", ["true", ""])
def test_what_is_missing_is_installed_without_what_is_merely_recommended(tmp_path: Path, ci: str) -> None:
    asked = tmp_path / "asked"
    for name, body in (("apt-get", f'echo "$DEBIAN_FRONTEND $@" >> {asked}'), ("systemctl", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    policy = Path("/usr/sbin/policy-rc.d")
    before = policy.exists()
    installed = run_program([sys.executable, Path(programs.__file__)], env={"PATH": str(tmp_path), "CI": ci})
    update, install = asked.read_text().splitlines()
    assert update.startswith("noninteractive ")
    assert update.endswith(" update")
    assert "install --no-install-recommends chromium dcmtk dicom3tools faketime" in install
    # The program that stands in for apt-get installs nothing, so everything is still missing.
    assert installed.returncode == (1 if ci else 0)
    assert "storescp (Debian package dcmtk) is missing" in installed.stderr
    assert policy.exists() == before


def test_an_address_is_enough_to_be_a_target(free_port: Callable[[], int]) -> None:
    nobody = Address("NOBODY", free_port())
    assert pynetdicom_apps.echoscu(nobody, extra=["-ta", "2"]).run().returncode != 0
