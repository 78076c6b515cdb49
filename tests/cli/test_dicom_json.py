"""Matches as DICOM JSON model objects, held against pydicom's and DCMTK's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from asyncdicom.association.query import decode_dataset, encode_dataset
from asyncdicom.cli.dicom_json import JSONModel, quote
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    UNCOMPRESSED,
)
from tests.peers.programs import program
from tests.peers.running import run_program


def model(dataset: Dataset, transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Any:
    return read(encode_dataset(dataset, transfer_syntax), transfer_syntax)


def read(encoded: bytes, transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Any:
    return json.loads("{" + JSONModel(transfer_syntax).members(encoded) + "}")


def study() -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.RetrieveAETitle = " PACS "
    dataset.StudyDate = "20260101"
    dataset.StudyTime = "101500.25"
    dataset.AccessionNumber = ""
    dataset.ModalitiesInStudy = ["CT", "SR"]
    dataset.StudyDescription = 'Thorax "nativ"\\größer'
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset.OtherPatientNames = ["Doe^Jane", "Roe^Jane"]
    dataset.PatientID = "P1"
    dataset.PatientBirthDate = None
    dataset.PatientSize = "1.750"
    dataset.PatientWeight = "-7e1"
    dataset.StudyInstanceUID = "1.2.3.4"
    dataset.NumberOfStudyRelatedInstances = "12"
    dataset.Rows = 512
    dataset.PatientComments = "first \\ not a second value"
    item = Dataset()
    item.CodeValue = "T-D3000"
    item.CodeMeaning = "Brustkorb"
    dataset.ProcedureCodeSequence = Sequence([item, Dataset()])
    return dataset


@pytest.mark.parametrize("transfer_syntax", [*UNCOMPRESSED, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN])
def test_a_match_is_the_object_that_pydicom_makes(transfer_syntax: str) -> None:
    expected = decode_dataset(encode_dataset(study(), transfer_syntax), transfer_syntax).to_json_dict()
    assert model(study(), transfer_syntax) == expected


@pytest.mark.parametrize("undefined", [False, True], ids=["defined length", "undefined length"])
@pytest.mark.parametrize("transfer_syntax", UNCOMPRESSED)
def test_sequences_of_either_length_are_read(transfer_syntax: str, undefined: bool) -> None:
    dataset, item, inner = Dataset(), Dataset(), Dataset()
    inner.Modality = "CT"
    item.RequestedProcedureID = "P"
    item.ScheduledProcedureStepSequence = Sequence([inner])
    dataset.RequestAttributesSequence = Sequence([item, item])
    dataset.PatientID = "after"
    for sequence in (dataset["RequestAttributesSequence"], item["ScheduledProcedureStepSequence"]):
        sequence.is_undefined_length = undefined
    for each in (item, inner):
        each.is_undefined_length_sequence_item = undefined
    found = model(dataset, transfer_syntax)
    inner_found = found["00400275"]["Value"][1]["00400100"]["Value"][0]
    assert inner_found == {"00080060": {"vr": "CS", "Value": ["CT"]}}
    assert found["00100020"]["Value"] == ["after"]


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ],
)
def test_names_are_read_in_every_character_set(charset: str | list[str], name: str) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = charset
    dataset.PatientName = name
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False))
    assert model(dataset)["00100010"] == {"vr": "PN", "Value": [groups]}


def test_the_same_bytes_under_another_character_set_are_another_name() -> None:
    encoder = JSONModel(EXPLICIT_VR_LITTLE_ENDIAN)
    names = []
    for charset, name in (("ISO_IR 100", "Müller"), ("ISO_IR 144", "Mќller"), ("ISO_IR 100", "Müller")):
        dataset = Dataset()
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = name
        encoded = encode_dataset(dataset, EXPLICIT_VR_LITTLE_ENDIAN)
        assert b"M\xfcller" in encoded
        names.append(json.loads("{" + encoder.members(encoded) + "}")["00100010"]["Value"][0]["Alphabetic"])
    assert names == ["Müller", "Mќller", "Müller"]


def test_empty_values_among_others_are_null_and_an_empty_attribute_has_no_value() -> None:
    dataset = Dataset()
    dataset.ImageType = ["ORIGINAL", "", "AXIAL"]
    dataset.OtherPatientNames = ["", "Roe"]
    dataset.PatientID = ""
    found = model(dataset)
    assert found["00080008"]["Value"] == ["ORIGINAL", None, "AXIAL"]
    assert found["00101001"]["Value"] == [None, {"Alphabetic": "Roe"}]
    assert found["00100020"] == {"vr": "LO"}


def test_numbers_that_are_none_stay_text() -> None:
    # PS3.18 section F.2.3: DS and IS are numbers or strings.
    encoded = b"\x10\x00\x20\x10DS\x04\x001,5 " + b"\x20\x00\x08\x12IS\x06\x00twelve"
    assert read(encoded) == {"00101020": {"vr": "DS", "Value": ["1,5"]}, "00201208": {"vr": "IS", "Value": ["twelve"]}}


def test_numbers_that_json_has_no_words_for_stay_readable() -> None:
    dataset = Dataset()
    dataset.RecommendedDisplayFrameRateInFloat = float("inf")
    assert "Infinity" in json.dumps(model(dataset))


def test_binary_values_tags_and_integers_are_written_as_the_model_wants_them() -> None:
    dataset = Dataset()
    dataset.add_new(Tag(0x00280009), "AT", Tag(0x00181063))
    dataset.add_new(Tag(0x00091002), "OB", b"\x01\x02")
    dataset.add_new(Tag(0x00280010), "US", [1, 65535])
    found = model(dataset)
    assert found["00280009"] == {"vr": "AT", "Value": ["00181063"]}
    assert found["00091002"] == {"vr": "OB", "InlineBinary": "AQI="}
    assert found["00280010"] == {"vr": "US", "Value": [1, 65535]}


def test_private_attributes_without_vr_are_unknown_and_their_creators_are_text() -> None:
    dataset = Dataset()
    dataset.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "x")
    found = model(dataset, IMPLICIT_VR_LITTLE_ENDIAN)
    assert found["00090010"] == {"vr": "LO", "Value": ["ACME"]}
    assert found["00091001"] == {"vr": "UN", "InlineBinary": "eCA="}


def test_group_lengths_are_left_out() -> None:
    assert read(b"\x08\x00\x00\x00UL\x04\x00\x0a\x00\x00\x00" + b"\x08\x00\x60\x00CS\x02\x00CT") == {
        "00080060": {"vr": "CS", "Value": ["CT"]}
    }


def test_more_different_values_than_are_remembered_stay_right() -> None:
    encoder = JSONModel(EXPLICIT_VR_LITTLE_ENDIAN)
    for number in range(10_000):
        value = b"%08d" % number
        members = encoder.members(b"\x10\x00\x20\x00LO\x08\x00" + value)
        assert members == f'"00100020":{{"vr":"LO","Value":["{value.decode()}"]}}'


def test_control_characters_are_escaped_for_the_terminal_that_shows_them() -> None:
    assert quote("a\x1b[31m\x9b\x7fü") == '"a\\u001b[31m\\u009b\\u007fü"'


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x10\x00\x20\x00LO\xff\x00abc",
        b"\x10\x00\x20",
        b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\x00",
        b"\x08\x00\x40\x11SQ\x00\x00\x10\x00\x00\x00\xfe\xff\x00\xe0\xff\x00\x00\x00" + b"\x00" * 8,
        b"\x08\x00\x40\x11SQ\x00\x00\x08\x00\x00\x00\x10\x00\x20\x00\x00\x00\x00\x00",
        b"\x28\x00\x10\x00US\x03\x00\x01\x00\x02",
        b"\x10\x00\x20\x00\xff\xff\x02\x00ab",
    ],
    ids=["length", "header", "sequence", "item", "no item", "odd integer", "vr"],
)
def test_what_is_damaged_is_refused(encoded: bytes) -> None:
    with pytest.raises(DatasetError):
        JSONModel(EXPLICIT_VR_LITTLE_ENDIAN).members(encoded)


def test_sequences_that_are_nested_without_end_are_refused() -> None:
    nested = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 1_000
    with pytest.raises(DatasetError, match="nested"):
        JSONModel(EXPLICIT_VR_LITTLE_ENDIAN).members(nested)


def test_a_deflate_bomb_is_refused() -> None:
    import zlib

    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(b"\0" * (64 << 20)) + deflater.flush()
    with pytest.raises(DatasetError, match="larger than"):
        JSONModel(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN).members(bomb)


def test_a_transfer_syntax_that_nobody_proposed_is_refused() -> None:
    with pytest.raises(DatasetError):
        JSONModel(EXPLICIT_VR_BIG_ENDIAN)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(UNCOMPRESSED))
def test_whatever_a_peer_sends_is_json_or_refused(encoded: bytes, transfer_syntax: str) -> None:
    try:
        members = JSONModel(transfer_syntax).members(encoded)
    except DatasetError:
        return
    json.loads("{" + members + "}")


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(UNCOMPRESSED))
def test_a_flipped_byte_is_json_or_refused(data: st.DataObject, transfer_syntax: str) -> None:
    encoded = bytearray(encode_dataset(study(), transfer_syntax))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        with warnings.catch_warnings():
            # pydicom tells of character sets that nobody knows.
            warnings.simplefilter("ignore")
            members = JSONModel(transfer_syntax).members(bytes(encoded))
    except DatasetError:
        return
    json.loads("{" + members + "}")


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\\\0\x1b", exclude_categories=["C"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "StudyDescription": _TEXT,
            "PatientID": st.lists(_TEXT, max_size=3),
            "PatientName": _TEXT.map(lambda text: text.replace("=", "")),
            "PatientComments": _TEXT,
            "AccessionNumber": _TEXT,
            "NumberOfStudyRelatedSeries": st.integers(-(2**31), 2**31 - 1),
            "PatientWeight": st.floats(0, 1e6).map(lambda number: f"{number:.6g}"),
        },
    ),
    st.sampled_from(UNCOMPRESSED),
)
def test_any_values_are_written_as_pydicom_writes_them(values: dict[str, Any], transfer_syntax: str) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            dataset.add_new(keyword, pydicom_vr(keyword), value)
        encoded = encode_dataset(dataset, transfer_syntax)
        expected = decode_dataset(encoded, transfer_syntax).to_json_dict()
    assert _without_empty(read(encoded, transfer_syntax)) == _without_empty(expected)


def pydicom_vr(keyword: str) -> str:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(keyword)


def _without_empty(found: dict[str, Any]) -> dict[str, Any]:
    """Empty values among others are null here, as PS3.18 section F.2.5 wants them, and empty text or objects there."""
    for element in found.values():
        if "Value" in element:
            element["Value"] = [None if value in ("", {}, {"Alphabetic": ""}) else value for value in element["Value"]]
            if set(element["Value"]) == {None} if not any(isinstance(v, dict) for v in element["Value"]) else False:
                del element["Value"]
    return found


@pytest.mark.peer("dump2dcm")
def test_a_match_is_the_object_that_dcmtk_makes(tmp_path: Path) -> None:
    dataset = study()
    (tmp_path / "match").write_bytes(encode_dataset(dataset, EXPLICIT_VR_LITTLE_ENDIAN))
    done = run_program([Path(program("dump2dcm")).with_name("dcm2json"), "-fc", "-f", "-te", tmp_path / "match"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model(dataset)
