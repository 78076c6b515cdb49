"""Reading the keys: the same as pydicom reads, of everything that pydicom can read, at a bounded cost."""

from __future__ import annotations

import random
import tracemalloc
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from asyncdicom.archive import Archive
from asyncdicom.archive.keys import Keys, read_keys
from asyncdicom.association.query import encode_dataset
from asyncdicom.association.received import Received
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from tests.archive.instances import files_in

SYNTAXES = [
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
]


# By what pydicom found out about a file: whether it is implicit, whether little endian.
_UNNAMED = {
    (True, True): IMPLICIT_VR_LITTLE_ENDIAN,
    (False, True): EXPLICIT_VR_LITTLE_ENDIAN,
    (False, False): EXPLICIT_VR_BIG_ENDIAN,
}

Instances = list[tuple[str, Received, Dataset]]


@pytest.fixture(scope="module")
def instances() -> Instances:
    """Every file of pydicom's package that has a SOP Instance UID, as it would arrive."""
    found = []
    # Not pydicom's own search, which goes on to what can be downloaded.
    for path in sorted(file for file in Path(DATA_ROOT).rglob("*") if file.is_file()):
        encoded = path.read_bytes()
        try:
            with warnings.catch_warnings(action="ignore"):
                dataset = dcmread(BytesIO(encoded), stop_before_pixels=True, force=True)
                uid = str(dataset.SOPInstanceUID)
        except Exception:  # noqa: S112 - files that pydicom itself cannot read, or that are no instances
            continue
        if encoded[128:132] == b"DICM" and encoded[132:136] == b"\x02\0\0\0":
            offset = 144 + int.from_bytes(encoded[140:144], "little")
            syntax = str(dataset.file_meta.TransferSyntaxUID)
        else:
            # Some have no File Meta Information, one has no length of it: such a sender has sent what follows.
            offset = encoded.index(b"\x08\0\x05\0") if b"\x08\0\x05\0" in encoded else 0
            syntax = _UNNAMED[dataset.original_encoding]
        sop_class = str(dataset.get("SOPClassUID", "1.2.3"))
        found.append((path.name, Received(encoded[offset:], sop_class, uid, syntax, "PYDICOM"), dataset))
    return found


def test_the_keys_of_every_file_of_pydicom_are_those_that_pydicom_reads(instances: Instances) -> None:
    assert len(instances) > 150
    for name, received, dataset in instances:
        keys = read_keys(received.data, received.transfer_syntax_uid)
        expected = [
            str(dataset.get(keyword) or "").strip()
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "StudyDate", "Modality")
        ]
        got = [
            keys.sop_instance_uid,
            keys.study_instance_uid,
            keys.series_instance_uid,
            keys.patient_id,
            keys.study_date,
            keys.modality,
        ]
        assert got == expected, name


@pytest.mark.parametrize("index", [True, False], ids=["index", "no-index"])
async def test_every_instance_of_pydicom_is_stored_byte_for_byte(tmp_path: Path, index: bool, instances: Instances) -> None:
    spec = f"sqlite:{tmp_path}/index.db" if index else None
    async with Archive(tmp_path / "archive", durability="none", duplicates="keep-all", index=spec) as archive:
        for name, received, _ in instances:
            assert (await archive.store(received)).status == 0x0000, name
    files = await files_in(tmp_path / "archive")
    assert set(files.values()) == {received.encoded for _, received, _ in instances}


def _dataset() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.StudyDate = "20260101"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.PatientID = "P1"
    dataset.StudyInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID = "1.2.3.5"
    dataset.Rows = 1
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [1, 5])
def test_keys_are_found_behind_nested_sequences(syntax: str, undefined: bool, depth: int) -> None:
    dataset = _dataset()
    inner = Dataset()
    inner.SOPInstanceUID = "9.9.9"
    inner.PatientID = "another"
    for _ in range(depth):
        item = Dataset()
        item.SOPInstanceUID = "9.9.9"
        item.ReferencedSeriesSequence = Sequence([inner, inner])
        item["ReferencedSeriesSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined  # type: ignore[attr-defined]
        inner = item
    dataset.ReferencedStudySequence = Sequence([inner])
    dataset["ReferencedStudySequence"].is_undefined_length = undefined
    keys = read_keys(encode_dataset(dataset, syntax), syntax)
    assert keys == Keys("1.2.3", "1.2.3.4", "1.2.3.5", "P1", "A1", "20260101", "CT", "1.2")


def test_nesting_of_any_depth_costs_no_recursion() -> None:
    depth = 20_000
    opening = b"\x08\0\x10\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    head = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN)
    at = head.index(b"\x10\0\x20\0")
    data = head[:at] + opening * depth + closing * depth + head[at:]
    assert read_keys(data, EXPLICIT_VR_LITTLE_ENDIAN).series_instance_uid == "1.2.3.5"


def test_a_sequence_of_unknown_vr_is_implicit_inside() -> None:
    head = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN)
    at = head.index(b"\x10\0\x20\0")
    inside = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + b"\x08\0\x50\x11\x04\0\0\x001.2\0" + b"\xfe\xff\x0d\xe0\0\0\0\0"
    unknown = b"\x09\0\x10\x10UN\0\0\xff\xff\xff\xff" + inside + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert read_keys(head[:at] + unknown + head[at:], EXPLICIT_VR_LITTLE_ENDIAN).patient_id == "P1"


@pytest.mark.parametrize("said", [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN])
@pytest.mark.parametrize("meant", [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN])
def test_a_sender_that_confuses_implicit_and_explicit_is_understood(said: str, meant: str) -> None:
    assert read_keys(encode_dataset(_dataset(), meant), said).series_instance_uid == "1.2.3.5"


@pytest.mark.parametrize(
    ("character_set", "patient"),
    [
        ("ISO_IR 100", "M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller"),
        ("ISO_IR 192", "\N{CYRILLIC CAPITAL LETTER ZHE}1"),
        ("ISO_IR 144", "\N{CYRILLIC CAPITAL LETTER ZHE}1"),
        ("GB18030", "\u738b1"),
        (["", "ISO 2022 IR 87"], "\u5c71\u7530"),
    ],
)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_patient_id_is_decoded_by_its_character_set(character_set: str | list[str], patient: str, syntax: str) -> None:
    dataset = _dataset()
    dataset.SpecificCharacterSet = character_set
    dataset.PatientID = patient
    assert read_keys(encode_dataset(dataset, syntax), syntax).patient_id == patient


def test_a_character_set_that_nobody_knows_is_no_reason_to_refuse() -> None:
    dataset = _dataset()
    dataset.PatientID = "PLACE"
    data = encode_dataset(dataset, EXPLICIT_VR_LITTLE_ENDIAN).replace(b"PLACE", b"\xff\xfe\x1b$B")
    assert read_keys(data, EXPLICIT_VR_LITTLE_ENDIAN).patient_id


@pytest.mark.parametrize("syntax", [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN])
def test_a_dataset_that_ends_before_group_0020_does_is_refused(syntax: str) -> None:
    whole = encode_dataset(_dataset(), syntax)
    series = read_keys(whole, syntax).series_instance_uid
    refused = 0
    for length in range(len(whole)):
        try:
            keys = read_keys(whole[:length], syntax)
        except DatasetError:
            refused += 1
        else:
            # Only between two elements can nobody tell that it goes on.
            assert keys.sop_instance_uid == "1.2.3"
            assert keys.series_instance_uid in ("", series)
    assert refused > len(whole) * 0.6


@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_random_bytes_are_refused_and_never_crash(data: bytes, syntax: str) -> None:
    try:
        read_keys(data, syntax)
    except DatasetError:
        return


@given(st.data())
@settings(max_examples=300)
def test_damaged_datasets_are_read_or_refused_and_never_crash(draw: st.DataObject) -> None:
    syntax = draw.draw(st.sampled_from(SYNTAXES))
    data = bytearray(encode_dataset(_dataset(), syntax))
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        read_keys(data, syntax)
    except DatasetError:
        return


def _deflated(plain: bytes) -> bytes:
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return deflater.compress(plain) + deflater.flush()


def _bomb(where: str) -> bytes:
    """About a megabyte that would become a gigabyte."""
    head = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN)
    at = {"in front of the keys": head.index(b"\x10\0\x20\0"), "behind them": len(head)}[where]
    size = 1 << 30
    tag = b"\x09\0\x10\x10" if where == "in front of the keys" else b"\xe1\x7f\x10\x10"
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    begin = deflater.compress(head[:at] + tag + b"OB\0\0" + size.to_bytes(4, "little")) + deflater.flush(zlib.Z_FULL_FLUSH)
    # A full flush depends on nothing before it, so its bytes can be repeated.
    zeros = deflater.compress(bytes(1 << 24)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return begin + zeros * (size >> 24) + deflater.compress(head[at:]) + deflater.flush()


@pytest.mark.parametrize(("where", "understood"), [("in front of the keys", False), ("behind them", True)])
def test_a_deflate_bomb_costs_little(where: str, understood: bool) -> None:
    bomb = _bomb(where)
    assert len(bomb) < 1.2 * (1 << 20)
    tracemalloc.start()
    try:
        if understood:
            assert read_keys(bomb, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).patient_id == "P1"
        else:
            with pytest.raises(DatasetError):
                read_keys(bomb, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_something_long_in_front_of_the_keys_of_a_deflated_dataset_is_passed() -> None:
    head = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN)
    at = head.index(b"\x10\0\x20\0")
    noise = random.Random(1).randbytes(1 << 20)
    plain = head[:at] + b"\x09\0\x10\x10OB\0\0" + len(noise).to_bytes(4, "little") + noise + head[at:]
    assert read_keys(_deflated(plain), DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).patient_id == "P1"


@pytest.mark.parametrize("rest", [b"", b"\xff" * 8])
def test_a_deflated_dataset_that_cannot_be_inflated_is_refused(rest: bytes) -> None:
    with pytest.raises(DatasetError):
        read_keys(b"\xff" * 40 + rest, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)


def test_endless_elements_are_given_up() -> None:
    head = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN)
    at = head.index(b"\x10\0\x20\0")
    with pytest.raises(DatasetError, match="more than"):
        read_keys(head[:at] + b"\x09\0\x10\x10LO\0\0" * 300_000 + head[at:], EXPLICIT_VR_LITTLE_ENDIAN)


def test_nothing_of_a_large_dataset_is_copied() -> None:
    data = encode_dataset(_dataset(), EXPLICIT_VR_LITTLE_ENDIAN) + b"\xe0\x7f\x10\0OW\0\0" + (1 << 26).to_bytes(4, "little")
    whole = memoryview(bytearray(data) + bytearray(1 << 26))
    tracemalloc.start()
    try:
        read_keys(whole, EXPLICIT_VR_LITTLE_ENDIAN)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
