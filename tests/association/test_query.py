"""A query becomes the identifier that the standard wants, or says what is wrong with it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdicom import ConfigurationError, DatasetError, Query
from asyncdicom.association.query import decode_dataset, encode_dataset
from asyncdicom.upper_layer import context as uid


def test_the_unique_key_of_the_level_is_asked_for_even_when_it_is_not_named() -> None:
    assert Query("series", {"StudyInstanceUID": "1.2"}).identifier.SeriesInstanceUID == ""
    assert Query("series", {}).identifier.QueryRetrieveLevel == "SERIES"


def test_the_keys_of_a_worklist_go_where_they_belong() -> None:
    identifier = Query(model="worklist", keys={"PatientID": "1", "Modality": "CT"}).identifier
    assert identifier.PatientID == "1"
    assert identifier.ScheduledProcedureStepSequence[0].Modality == "CT"
    assert "QueryRetrieveLevel" not in identifier


def test_wildcards_and_ranges_are_keys() -> None:
    identifier = Query(keys={"StudyDate": "20260101-", "PatientName": "Do*", "ModalitiesInStudy": "CT\\MR"}).identifier
    assert identifier.StudyDate == "20260101-"


def test_a_private_or_numeric_key_is_a_tag() -> None:
    assert (0x0009, 0x1001) in Query(keys={"00091001": ""}).identifier
    assert Query(keys={"00100020": "7"}).identifier.PatientID == "7"


def test_text_beyond_ascii_brings_its_character_set() -> None:
    identifier = Query(keys={"PatientName": "Grün*"}).identifier
    assert identifier.SpecificCharacterSet == "ISO_IR 192"
    assert decode_dataset(
        encode_dataset(identifier, uid.IMPLICIT_VR_LITTLE_ENDIAN), uid.IMPLICIT_VR_LITTLE_ENDIAN
    ).PatientName == ("Grün*")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"keys": {"PatentID": "1"}}, "keyword of PS3.6"),
        ({"level": "patient", "model": "study"}, "model patient"),
        ({"level": "frame"}, "one of"),
        ({"model": "moon"}, "one of"),
    ],
)
def test_a_query_that_cannot_be_asked_says_what_to_write_instead(wrong: dict, hint: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigurationError, match=hint):
        Query(**wrong)


def test_a_worklist_holds_nothing_to_retrieve() -> None:
    with pytest.raises(ConfigurationError, match="retrieve"):
        _ = Query(model="worklist").move_sop_class


SYNTAXES = [
    uid.IMPLICIT_VR_LITTLE_ENDIAN,
    uid.EXPLICIT_VR_LITTLE_ENDIAN,
    uid.EXPLICIT_VR_BIG_ENDIAN,
    uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_identifier_survives_its_encoding(syntax: str) -> None:
    identifier = Query(keys={"PatientID": "1", "NumberOfStudyRelatedInstances": "", "StudyDate": "20260101"}).identifier
    assert decode_dataset(
        Query(keys={"PatientID": "1", "NumberOfStudyRelatedInstances": "", "StudyDate": "20260101"}).encode(syntax), syntax
    ) == (identifier)


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
def test_bytes_that_are_no_dataset_raise_nothing_but_a_dataset_error(encoded: bytes, syntax: str) -> None:
    with contextlib.suppress(DatasetError):
        decode_dataset(encoded, syntax)


def test_a_deflate_bomb_is_not_inflated() -> None:
    """Bar S4 for C-FIND: a megabyte that wants to be a gigabyte."""
    import zlib

    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = b"".join([*(deflater.compress(b"\0" * (1 << 20)) for _ in range(64)), deflater.flush()])
    with pytest.raises(DatasetError, match="larger than"):
        decode_dataset(bomb, uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
