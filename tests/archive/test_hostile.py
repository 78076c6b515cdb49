"""Names that mean harm (S5): no path outside the root, no log record split, no two instances in one file."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from asyncdicom.archive import Archive
from asyncdicom.association.received import Received
from tests.archive.instances import files_in, with_attributes

_ATOMS = [
    "..",
    ".",
    "",
    "/",
    "//",
    "../../../../tmp/x",
    "/etc/passwd",
    "a/b/../../c",
    "\0",
    "a\0b",
    "\r\n",
    "1.2\r\nWARNING forged",
    "\x1b[31m",
    ".incoming",
    ".incoming/0",
    "_",
    "~",
    "%2E%2E",
    "%",
    "CON",
    "-rf",
    "*",
    "$(id)",
    "`id`",
    "1.2.3\\4.5.6",
    "x" * 65,
    "9" * 300,
    " ",
    " 1.2.3 ",
    "1.2.3.dcm",
    "1.2.3~0123",
    "\u202egnp.exe",
    "M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller",
    "\U0001f480",
    "\ufeff",
    "e\u0301",
    "\ud800",
    "\uff0e\uff0e/",
    "\u2215etc",
    "a" * 1024,
]
HOSTILE = [prefix + atom for prefix in ("", "1.2.", "../", "./", "\N{GREEK SMALL LETTER ALPHA}") for atom in _ATOMS]
_LAYOUT = "{PatientID}/{StudyInstanceUID}/{Modality}-{AccessionNumber}/{CallingAETitle}/{SOPInstanceUID}.dcm"


def _element(tag: bytes, vr: bytes, value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    encoded += b" " * (len(encoded) % 2)
    return tag + vr + len(encoded).to_bytes(2, "little") + encoded


def _hostile(uid: str, name: str) -> Received:
    """An instance with a name in every attribute that a path can be made of, encoded by hand: no encoder would."""
    data = (
        _element(b"\x08\0\x05\0", b"CS", "ISO_IR 192")
        + _element(b"\x08\0\x18\0", b"UI", "1.2.3")
        + _element(b"\x08\0\x20\0", b"DA", name)
        + _element(b"\x08\0\x50\0", b"SH", name)
        + _element(b"\x08\0\x60\0", b"CS", name)
        + _element(b"\x10\0\x20\0", b"LO", name)
        + _element(b"\x20\0\x0d\0", b"UI", name)
        + _element(b"\x20\0\x0e\0", b"UI", name)
    )
    return Received(data, "1.2.840.10008.5.1.4.1.1.2", uid, str(ExplicitVRLittleEndian), name, peer_address=name[:40])


def test_there_are_200_of_them() -> None:
    assert len(set(HOSTILE)) >= 190
    assert len(HOSTILE) == 200


@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
@pytest.mark.parametrize("layout", [None, _LAYOUT], ids=["default", "everything"])
async def test_no_name_leads_outside_the_root(
    tmp_path: Path, index: bool, layout: str | None, log: list[str], no_leaks: object
) -> None:
    root = tmp_path / "deep" / "er" / "archive"
    settings = {"layout": layout} if layout else {}
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    stored = []
    async with Archive(root, durability="none", index=spec, **settings) as archive:
        for number, name in enumerate(HOSTILE):
            # As an attribute beside a UID that is one, and as the UID itself.
            for instance in (_hostile(f"1.2.{number}", name), _hostile(name, name)):
                result = await archive.store(instance)
                assert result.status in (0x0000, 0xB007, 0xC000)
                if result.duplicate is None and result.status != 0xC000:
                    assert result.path is not None
                    assert result.path.is_relative_to(root)
                    stored.append(instance.encoded)
    inside = await files_in(root)
    outside = [path for path in await files_in(tmp_path) if not path.startswith(("deep/er/archive/", "index.db"))]
    assert outside == []
    assert sorted(inside.values()) == sorted(stored)
    assert len(stored) > 250
    for path in inside:
        assert all(name.isascii() and name.isprintable() and len(name) < 250 and name[0] != "." for name in path.split("/"))
    # A record that was split would give lines of its own to whoever reads the log.
    assert all("\n" not in line and "\r" not in line and "\x1b" not in line and "\0" not in line for line in log)


async def test_a_patient_id_is_never_logged(tmp_path: Path, log: list[str]) -> None:
    instance = with_attributes(PatientID="CANARY", AccessionNumber="CANARY", StudyInstanceUID="1.1", SeriesInstanceUID="1.2")

    def meddle() -> None:
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive" / "CANARY").symlink_to(tmp_path)

    await anyio.to_thread.run_sync(meddle)
    async with Archive(tmp_path / "archive", layout="{PatientID}/{SOPInstanceUID}.dcm") as archive:
        assert (await archive.store(instance)).status == 0xA700
    assert log
    assert "CANARY" not in "\n".join(log)
