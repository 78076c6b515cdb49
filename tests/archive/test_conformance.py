"""What does not conform is accepted, quarantined or refused by a documented rule, counted, and never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from asyncdicom import Archive, Observer, Received
from asyncdicom.archive import conformance
from asyncdicom.association.query import encode_dataset
from asyncdicom.testing.instances import CT_IMAGE_STORAGE
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    UNCOMPRESSED,
)
from tests.archive.instances import files_in

_UID = "1.2.3"
_SYNTAXES = (*UNCOMPRESSED, EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


class Counted(Observer):
    """Remembers what was odd."""

    def __init__(self) -> None:
        self.odd: list[tuple[tuple[str, ...], bool]] = []

    def nonconformant(self, doubts: tuple[str, ...], *, quarantined: bool) -> None:
        self.odd.append((doubts, quarantined))


def _encoded(syntax: str = EXPLICIT_VR_LITTLE_ENDIAN, **changes: str | None) -> bytes:
    dataset = Dataset()
    attributes: dict[str, str | None] = {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "SOPInstanceUID": _UID,
        "StudyInstanceUID": "1.1",
        "SeriesInstanceUID": "1.1.1",
    }
    for keyword, value in (attributes | changes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return encode_dataset(dataset, syntax)


def _received(data: bytes, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Received:
    return Received(data, CT_IMAGE_STORAGE, _UID, syntax, "CT1")


META = b"\x02\0\x10\0UI\x14\x00" + EXPLICIT_VR_LITTLE_ENDIAN.encode().ljust(20, b"\0")
CASES = {
    "another instance": (_encoded(SOPInstanceUID="9.9"), ("sop_instance_uid",), 0xB007),
    "another class": (_encoded(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), ("sop_class_uid",), 0xB007),
    "no class": (_encoded(SOPClassUID=None), ("sop_class_uid",), 0xB007),
    "no study": (_encoded(StudyInstanceUID=None), ("no_study",), 0x0000),
    "no series": (_encoded(SeriesInstanceUID=None), ("no_study",), 0x0000),
    "File Meta Information in the dataset": (META + _encoded(), ("foreign_group",), 0x0000),
    "an odd number of bytes": (_encoded() + b"\x10\0\x10\0PN\x03\0A^B", ("odd_length",), 0x0000),
    "two things": (_encoded(SOPClassUID=None, StudyInstanceUID=None), ("sop_class_uid", "no_study"), 0xB007),
}


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "no-index"])
@pytest.mark.parametrize("name", CASES)
async def test_what_is_odd_is_kept_as_it_came_and_counted(tmp_path: Path, name: str, indexed: bool) -> None:
    data, doubts, status = CASES[name]
    counted = Counted()
    index = f"sqlite:{tmp_path / 'index.db'}" if indexed else None
    async with Archive(tmp_path / "archive", index=index, observer=counted) as archive:
        stored = await archive.store(_received(data))
        assert (stored.status, stored.doubts) == (status, doubts)
        quarantined = doubts != ("odd_length",)
        assert counted.odd == [(doubts, quarantined)]
        again = await archive.store(_received(data))
        assert (again.duplicate, again.status) == ("identical", status)
        if archive.index is not None:
            (entry,) = await archive.index.instances(sop_instance_uid=_UID)
            assert entry.path.startswith("quarantine~/") is quarantined
    ((path, kept),) = (await files_in(tmp_path / "archive")).items()
    assert path.startswith("quarantine~/") is quarantined
    assert kept == _received(data).encoded


@pytest.mark.parametrize("syntax", _SYNTAXES)
async def test_what_conforms_is_not_doubted_in_any_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    counted = Counted()
    async with Archive(tmp_path / "archive", observer=counted) as archive:
        stored = await archive.store(_received(_encoded(syntax), syntax))
    assert (stored.status, stored.doubts, counted.odd) == (0x0000, (), [])


@pytest.mark.parametrize("syntax", [EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
async def test_a_foreign_group_is_seen_in_any_byte_order(tmp_path: Path, syntax: str) -> None:
    big = syntax == EXPLICIT_VR_BIG_ENDIAN
    meta = b"\0\x02\0\x10UI\0\x021\0" if big else b"\x02\0\x10\0\x02\0\0\x001\0"
    async with Archive(tmp_path / "archive") as archive:
        stored = await archive.store(_received(meta + _encoded(syntax), syntax))
    assert (stored.status, stored.doubts) == (0x0000, ("foreign_group",))


@pytest.mark.parametrize(
    "data",
    [_encoded(SOPInstanceUID=None), b"\0" * 128 + b"DICM" + META + _encoded(), b"\x08\0\x18"],
    ids=["no UID", "file", "cut"],
)
async def test_what_cannot_be_told_what_it_is_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    async with Archive(tmp_path / "archive") as archive:
        assert (await archive.store(_received(data))).status == 0xC000
    assert await files_in(tmp_path / "archive") == {}


async def test_an_instance_that_is_mended_by_its_sender_is_another_object_under_its_uid(tmp_path: Path) -> None:
    async with Archive(tmp_path / "archive", duplicates="replace", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        await archive.store(_received(_encoded(StudyInstanceUID=None)))
        mended = await archive.store(_received(_encoded()))
        assert (mended.status, mended.duplicate, mended.doubts) == (0x0000, "replaced", ())
    (path,) = await files_in(tmp_path / "archive")
    assert not path.startswith("quarantine~/")


def test_every_rule_is_documented() -> None:
    assert conformance.__doc__ is not None
    assert all(f"``{doubt}``" in conformance.__doc__ for doubt in conformance.DOUBTS)
