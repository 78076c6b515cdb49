"""The configuration: every mistake is told at once, where it stands, and with what to write instead."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.fleet.inventory import load_inventory
from asyncdicom.modality import TLS, Arrivals, Modality, Timeouts, UserIdentity, WeekHours
from asyncdicom.service.config import Config, ConfigurationErrors, check, load

BAD = Path(__file__).with_name("bad")
CT1 = {"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1", "groups": ["scanners", "site-a"]}


@pytest.mark.parametrize("name", sorted(file.stem for file in BAD.glob("*.toml")))
def test_a_bad_configuration_is_told_line_by_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigurationErrors) as caught:
        load(f"{name}.toml")
    assert [str(error) for error in caught.value] == (BAD / f"{name}.expected").read_text().splitlines()


def test_no_secret_is_in_any_message() -> None:
    assert not [file.name for file in BAD.glob("*.expected") if "hunter2" in file.read_text()]


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such file"):
        load(tmp_path / "none.toml")


def test_an_empty_file_has_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    config = load(tmp_path / "a.toml")
    assert (config.ae.title, config.scp, config.archive, config.web, config.modality) == ("ASYNCDICOM", None, None, None, ())
    assert (config.fleet.concurrency, config.fleet.deadline, config.fleet.breaker.failures) == (64, 10.0, 5)


def test_whatever_listens_does_so_on_loopback_by_default(tmp_path: Path) -> None:
    config = check({"scp": {}, "web": {}}, tmp_path)
    assert config.scp is not None
    assert config.web is not None
    assert (config.scp.host, config.web.host) == ("127.0.0.1", "127.0.0.1")


def test_an_scp_without_an_archive_table_has_the_default_archive(tmp_path: Path) -> None:
    config = check({"scp": {}}, tmp_path)
    assert config.scp is not None
    assert config.archive is not None
    assert (config.scp.host, config.scp.port, config.scp.max_object_size) == ("127.0.0.1", 11112, 4 << 30)
    assert config.archive_directory == tmp_path / "data/archive"
    assert config.index == f"sqlite:{tmp_path}/data/index.db"
    assert config.archive.min_free == 5 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("5 GiB", 5 << 30),
        ("16MiB", 16 << 20),
        ("1.5 MB", 1_500_000),
        ("2 tib", 2 << 40),
        ("7", 7),
        (7, 7),
        ("1 kB", 1000),
    ],
)
def test_a_size_has_a_unit_or_is_in_bytes(text: object, size: int, tmp_path: Path) -> None:
    archive = check({"archive": {"min_free": text}}, tmp_path).archive
    assert archive is not None
    assert archive.min_free == size


def test_paths_begin_at_the_configuration_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "token").write_text("opensesame\n")
    (folder / "a.toml").write_text(
        '[web]\ntoken_file = "token"\n[archive]\ndirectory = "../kept"\nindex = "sqlite:/var/i.db"\n'
    )
    config = load(folder / "a.toml")
    assert config.token == "opensesame"
    assert config.archive_directory == folder / "../kept"
    assert config.index == "sqlite:/var/i.db"
    assert "opensesame" not in repr(config)


def test_empty_text_means_absent(tmp_path: Path) -> None:
    config = check(
        {
            "scp": {"tls": {"certificate": "", "key": "", "client_ca": ""}},
            "web": {"token_file": ""},
            "modality": [{**CT1, "calling_ae_title": ""}],
        },
        tmp_path,
    )
    assert config.scp is not None
    assert config.scp.tls is not None
    assert config.scp.tls.certificate is None
    assert config.token is None
    assert config.modality[0].calling_ae_title is None


def test_a_modality_takes_what_it_does_not_say_from_the_fleet(tmp_path: Path) -> None:
    config = check(
        {
            "fleet": {"per_modality": 2, "timeouts": {"connect": 7, "operation": 8.0}},
            "modality": [CT1, {**CT1, "name": "ct2", "per_modality": 3, "timeouts": {"connect": 1.0}}],
        },
        tmp_path,
    )
    first, second = config.modality
    assert first.timeouts == Timeouts(connect=7.0, operation=8.0)
    assert second.timeouts == Timeouts(connect=1.0, operation=8.0)
    assert (first.limits.per_modality, second.limits.per_modality) == (2, 3)
    assert first.groups == ("scanners", "site-a")


def test_secrets_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passcode").write_text("hunter2\n")
    monkeypatch.setenv("PEER_TOKEN", "ey.ey.x")
    config = check(
        {
            "modality": [
                {**CT1, "user_identity": {"kind": "username+passcode", "username": "me", "passcode_file": "passcode"}},
                {**CT1, "name": "ct2", "user_identity": {"kind": "jwt", "token_env": "PEER_TOKEN"}, "tls": {}},
            ]
        },
        tmp_path,
    )
    assert config.modality[0].user_identity == UserIdentity("username+passcode", b"me", b"hunter2")
    assert config.modality[1].user_identity == UserIdentity("jwt", b"ey.ey.x")
    assert config.modality[1].tls == TLS()
    assert "hunter2" not in repr(config)


def test_csv_inventories_add_modalities(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "b.csv").write_text("name,ae_title,host,port,groups\nmr1,MR1,10.0.0.2,11112,scanners;site-b\n")
    (tmp_path / "inventory" / "a.csv").write_bytes(b"\xef\xbb\xbfName, ae_title, host\r\nct2, CT2, 10.0.0.1\r\n\r\n")
    config = check(
        {"modality": [CT1], "modalities": {"files": ["inventory/*.csv"]}, "sweep": [{"targets": ["@site-b"]}]}, tmp_path
    )
    assert [modality.name for modality in config.modality] == ["ct1", "ct2", "mr1"]
    assert config.modality[1] == Modality("ct2", ae_title="CT2", host="10.0.0.1", port=104)
    assert config.modality[2].groups == ("scanners", "site-b")


def test_an_inventory_is_read_without_the_service(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[ae]\ntitle = "ME"\n[scp]\n[[modality]]\nname = "a"\nae_title = "A"\nhost = "h"\n')
    (tmp_path / "a.csv").write_text("name,ae_title,host\nb,B,h\n")
    inventory = load_inventory(tmp_path / "a.toml")
    assert inventory.calling_ae_title == "ME"
    assert [modality.name for modality in inventory] == ["a"]
    assert [modality.name for modality in load_inventory(tmp_path / "a.csv")] == ["b"]
    (tmp_path / "a.toml").write_text("[[modalitys]]\n")
    with pytest.raises(ConfigurationErrors, match="did you mean modality"):
        load_inventory(tmp_path / "a.toml")


def test_binding_beyond_loopback_needs_a_rule_or_a_word(tmp_path: Path) -> None:
    assert check({"scp": {"host": "0.0.0.0", "accept_any": True}}, tmp_path).scp is not None
    assert check({"scp": {"host": "0.0.0.0", "allow": [{"ae_title": "CT1"}]}}, tmp_path).scp is not None
    assert check({"scp": {"host": "127.8.9.1"}}, tmp_path).scp is not None
    assert check({"scp": {"host": "::1"}}, tmp_path).scp is not None
    with pytest.raises(ConfigurationErrors, match=r"scp\.host"):
        check({"scp": {"host": "pacs.example", "allow": []}}, tmp_path)


def test_sweeps_have_distinct_names(tmp_path: Path) -> None:
    sweeps = [{}, {"operation": "find"}, {"every": 5}, {"name": "echo-2"}, {}]
    assert check({"sweep": sweeps}, tmp_path).sweep_names == ("echo", "find", "echo-3", "echo-2", "echo-4")


def test_the_documented_example_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "a.csv").write_text("name,ae_title,host,port,groups\nct2,CT2,10.1.2.4,104,scanners\n")
    (tmp_path / "a.toml").write_text(EXAMPLE)
    config = load(tmp_path / "a.toml")
    assert isinstance(config, Config)
    assert [modality.name for modality in config.modality] == ["ct1", "ct2"]
    assert config.events.target[0].run == ("process-study", "{StudyInstanceUID}")


def test_reading_a_configuration_imports_no_dicom_library() -> None:
    program = (
        "import sys, asyncdicom.service.config; print([m for m in ('pydicom', 'pynetdicom', 'starlette') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


EXAMPLE = """
[ae]
title = "ASYNCDICOM"
[scp]
host = "127.0.0.1"
port = 11112
engine = "native"
accept_any = false
max_associations = 1000
max_pdu = 131072
max_object_size = "4 GiB"
require_called_ae_title = false
artim_timeout = 10.0
idle_timeout = 60.0
min_rate = 500
drain_timeout = 30.0
promiscuous = true
[[scp.allow]]
ae_title = "CT1"
networks = ["10.1.0.0/16"]
[archive]
directory = "data/archive"
layout = "{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm"
durability = "full"
duplicates = "keep-first"
min_free = "5 GiB"
index = "sqlite:data/index.db"
[events]
study_complete_after = 60.0
[[events.target]]
kind = "command"
on = ["study.complete"]
run = ["process-study", "{StudyInstanceUID}"]
[fleet]
concurrency = 64
per_modality = 1
deadline = 10.0
retries = 0
breaker = { failures = 5, open_for = 60.0 }
timeouts = { resolve = 2.0, connect = 3.0, associate = 5.0, operation = 10.0, release = 2.0 }
[[sweep]]
operation = "echo"
every = 30.0
targets = ["@all"]
[web]
host = "127.0.0.1"
port = 8080
token_file = ""
[[modality]]
name = "ct1"
ae_title = "CT1"
host = "10.1.2.3"
port = 104
calling_ae_title = ""
groups = ["scanners", "site-a"]
tls = { ca = "", certificate = "", key = "", server_name = "" }
quirks = { one_operation_per_association = true }
[modalities]
files = ["inventory/*.csv"]
"""


def test_arrivals_are_those_of_the_modality_or_else_those_of_all_and_holidays_hold_for_everybody(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("name,ae_title,host\nct4,CT4,127.0.0.1\n")
    table = {"ae_title": "CT", "host": "127.0.0.1"}
    raw = {
        "scp": {},
        "modalities": {"files": ["*.csv"], "arrivals": "learn", "holidays": [date(2026, 12, 25)]},
        "modality": [
            {**table, "name": "ct1", "arrivals": {"within": 3600, "hours": "Mon-Fri 07:00-18:00"}},
            {**table, "name": "ct2", "arrivals": "off"},
            {**table, "name": "ct3", "arrivals": {"within": 60.0, "hours": ["Mon 07:00-18:00", "Sat"]}},
        ],
    }
    holidays = frozenset({date(2026, 12, 25)})
    found = {modality.name: modality.arrivals for modality in check(raw, tmp_path).modality}
    assert found == {
        "ct1": Arrivals(3600.0, (WeekHours.parse("Mon-Fri 07:00-18:00"),), holidays),
        "ct2": None,
        "ct3": Arrivals(60.0, (WeekHours.parse("Mon 07:00-18:00"), WeekHours.parse("Sat")), holidays),
        "ct4": Arrivals(None, (), holidays),
    }
    assert check({"scp": {}, "modality": [{**table, "name": "ct1"}]}, tmp_path).modality[0].arrivals is None
