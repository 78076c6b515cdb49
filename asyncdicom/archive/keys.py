"""The attributes that place an instance, read without decoding it."""

from __future__ import annotations

from dataclasses import dataclass

from asyncdicom.elements import Buffer, text, walk
from asyncdicom.errors import DatasetError

_CHARACTER_SET = 0x00080005
_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_STUDY_DATE = 0x00080020
_ACCESSION_NUMBER = 0x00080050
_MODALITY = 0x00080060
_PATIENT_ID = 0x00100020
_STUDY_INSTANCE_UID = 0x0020000D
_SERIES_INSTANCE_UID = 0x0020000E
_WANTED = frozenset(
    {
        _CHARACTER_SET,
        _SOP_CLASS_UID,
        _SOP_INSTANCE_UID,
        _STUDY_DATE,
        _ACCESSION_NUMBER,
        _MODALITY,
        _PATIENT_ID,
        _STUDY_INSTANCE_UID,
        _SERIES_INSTANCE_UID,
    }
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The attributes of a dataset that place it; empty where absent."""

    sop_instance_uid: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    patient_id: str = ""
    accession_number: str = ""
    study_date: str = ""
    modality: str = ""
    sop_class_uid: str = ""


def read_keys(data: Buffer, transfer_syntax_uid: str, *, is_whole: bool = True) -> Keys:
    """Read the keys of a dataset that came without File Meta Information.

    :param data: the dataset as it is encoded; not copied
    :param is_whole: whether this is all of it, and not its beginning
    :raises Truncated: when the bytes end before the keys do
    :raises DatasetError: when it cannot be parsed up to there, or has no SOP Instance UID
    """
    values = walk(data, transfer_syntax_uid, _WANTED, is_whole=is_whole)
    sop_instance_uid = _ascii(values.get(_SOP_INSTANCE_UID, b""))
    if not sop_instance_uid:
        raise DatasetError("the dataset has no SOP Instance UID")
    return Keys(
        sop_instance_uid,
        _ascii(values.get(_STUDY_INSTANCE_UID, b"")),
        _ascii(values.get(_SERIES_INSTANCE_UID, b"")),
        text(values.get(_PATIENT_ID, b""), values.get(_CHARACTER_SET, b"")),
        text(values.get(_ACCESSION_NUMBER, b""), values.get(_CHARACTER_SET, b"")),
        _ascii(values.get(_STUDY_DATE, b"")),
        _ascii(values.get(_MODALITY, b"")),
        _ascii(values.get(_SOP_CLASS_UID, b"")),
    )


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")
