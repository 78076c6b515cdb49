"""What is asked of an archive or a worklist, and one answer to it (PS3.4 Annexes C and K)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any, Literal

from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from asyncdicom.elements import deflate, inflate
from asyncdicom.errors import ConfigurationError, DatasetError
from asyncdicom.outcome import Status
from asyncdicom.upper_layer import context as uid

Level = Literal["patient", "study", "series", "image"]
Model = Literal["patient", "study", "worklist"]

LEVELS: tuple[Level, ...] = ("patient", "study", "series", "image")
# PS3.4 Tables C.6-1 to C.6-5: the unique key of each level.
UNIQUE_KEYS: dict[Level, str] = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "image": "SOPInstanceUID",
}
_FIND = {"patient": uid.PATIENT_ROOT_FIND, "study": uid.STUDY_ROOT_FIND, "worklist": uid.MODALITY_WORKLIST_FIND}
_MOVE = {"patient": uid.PATIENT_ROOT_MOVE, "study": uid.STUDY_ROOT_MOVE}
_GET = {"patient": uid.PATIENT_ROOT_GET, "study": uid.STUDY_ROOT_GET}
# A worklist query reaches into this sequence; its keys may be written without naming it (PS3.4 Table K.6-1).
_SCHEDULED_STEP = "ScheduledProcedureStepSequence"
_STEP_KEYS = frozenset(
    {
        "Modality",
        "ScheduledStationAETitle",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
        "ScheduledPerformingPhysicianName",
        "ScheduledProcedureStepDescription",
        "ScheduledProcedureStepID",
        "ScheduledStationName",
        "ScheduledProcedureStepLocation",
    }
)


@dataclass(frozen=True)
class Query:
    """A C-FIND, C-MOVE or C-GET identifier.

    :ivar level: the query/retrieve level; a worklist has none
    :ivar keys: keyword (or ``GGGGEEEE``) to the value to match; an empty value asks for the attribute (universal matching)
    :ivar model: the information model
    :ivar relational: ask for relational queries in extended negotiation (PS3.4 C.5.1.1); so with the next three
    """

    level: Level = "study"
    keys: Mapping[str, Any] = field(default_factory=dict)
    model: Model = "study"
    relational: bool = False
    fuzzy: bool = False
    datetime: bool = False
    timezone: bool = False

    def __post_init__(self) -> None:
        if self.model not in _FIND:
            raise ConfigurationError("model", self.model, f"one of {', '.join(_FIND)}")
        if self.level not in LEVELS:
            raise ConfigurationError("level", self.level, f"one of {', '.join(LEVELS)}")
        if self.model == "study" and self.level == "patient":
            raise ConfigurationError("level", self.level, "the study root model begins at the study: use model patient")
        for keyword in self.keys:
            _tag_of(keyword)

    @property
    def find_sop_class(self) -> str:
        """The SOP class to find with."""
        return _FIND[self.model]

    @property
    def move_sop_class(self) -> str:
        """The SOP class to move with.

        :raises ConfigurationError: for a worklist, which holds no instances
        """
        return self._retrieve(_MOVE)

    @property
    def get_sop_class(self) -> str:
        """The SOP class to get with.

        :raises ConfigurationError: for a worklist, which holds no instances
        """
        return self._retrieve(_GET)

    def _retrieve(self, classes: dict[str, str]) -> str:
        if self.model not in classes:
            raise ConfigurationError("model", self.model, "a worklist holds nothing to retrieve")
        return classes[self.model]

    @property
    def unique_key(self) -> str | None:
        """The keyword of the level's unique key; None for a worklist."""
        return None if self.model == "worklist" else UNIQUE_KEYS[self.level]

    @property
    def extended_negotiation(self) -> bytes:
        """The Service-class-application-information of PS3.4 C.5.1.1; empty when nothing is asked."""
        flags = [self.relational, self.datetime, self.fuzzy, self.timezone]
        if not any(flags):
            return b""
        return bytes(int(flag) for flag in flags)

    @cached_property
    def identifier(self) -> Dataset:
        """The identifier as a dataset: the keys, the level, and the level's unique key."""
        dataset = Dataset()
        step = Dataset()
        for keyword, value in self.keys.items():
            tag = _tag_of(keyword)
            name = keyword_for_tag(tag)
            target = step if self.model == "worklist" and name in _STEP_KEYS else dataset
            try:
                target.add(_element(tag, value))
            except (ValueError, TypeError) as error:
                raise ConfigurationError(f"key {keyword}", value, f"not a value for this attribute: {error}") from None
        if self.model == "worklist":
            if _SCHEDULED_STEP not in dataset:
                dataset.ScheduledProcedureStepSequence = Sequence([step])
        else:
            dataset.QueryRetrieveLevel = self.level.upper()
            if self.unique_key is not None and self.unique_key not in dataset:
                setattr(dataset, self.unique_key, "")
        if "SpecificCharacterSet" not in dataset and _needs_utf8(dataset):
            dataset.SpecificCharacterSet = "ISO_IR 192"
        return dataset

    def encode(self, transfer_syntax: str) -> bytes:
        """Encode the identifier.

        :raises ConfigurationError: when a value does not fit its attribute
        """
        try:
            return encode_dataset(self.identifier, transfer_syntax)
        except DatasetError as error:
            raise ConfigurationError("keys", "", str(error)) from None


class Match:
    """One answer to a C-FIND.

    :ivar encoded: the identifier as received
    :ivar transfer_syntax: how it is encoded
    :ivar status: 0xFF00, or 0xFF01 when optional keys were not supported
    :ivar sources: names of the modalities that gave it
    """

    __slots__ = ("__dict__", "encoded", "sources", "status", "transfer_syntax")

    def __init__(self, encoded: bytes, transfer_syntax: str, status: Status, sources: tuple[str, ...] = ()) -> None:
        self.encoded = encoded
        self.transfer_syntax = transfer_syntax
        self.status = status
        self.sources = sources

    @cached_property
    def dataset(self) -> Dataset:
        """The identifier, decoded when first asked for.

        :raises DatasetError: when it cannot be decoded
        """
        return decode_dataset(self.encoded, self.transfer_syntax)

    def __repr__(self) -> str:
        # No value of the dataset: a repr ends up in logs.
        return f"<Match of {len(self.encoded)} bytes from {', '.join(self.sources) or 'nobody'}>"


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """Encode a dataset in an uncompressed or deflated transfer syntax.

    :raises DatasetError: when a value cannot be encoded
    """
    buffer = DicomBytesIO()
    buffer.is_little_endian = transfer_syntax != uid.EXPLICIT_VR_BIG_ENDIAN
    buffer.is_implicit_VR = transfer_syntax == uid.IMPLICIT_VR_LITTLE_ENDIAN
    try:
        # pydicom has no public way of writing a dataset without group 2 to bytes and without touching its settings.
        write_dataset(buffer, dataset)
    except Exception as error:
        # Every kind of wrong value raises its own exception there, down to struct.error.
        raise DatasetError(f"the dataset cannot be encoded: {type(error).__name__}") from error
    encoded = buffer.getvalue()
    if transfer_syntax == uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        encoded = deflate(encoded)
    return bytes(encoded)


def decode_dataset(encoded: bytes, transfer_syntax: str) -> Dataset:
    """Decode a dataset that came without File Meta Information.

    :raises DatasetError: when it cannot be decoded, or inflates beyond 4 MiB
    """
    if transfer_syntax == uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        encoded = bytes(inflate(encoded))
    implicit = transfer_syntax == uid.IMPLICIT_VR_LITTLE_ENDIAN
    little_endian = transfer_syntax != uid.EXPLICIT_VR_BIG_ENDIAN
    try:
        return read_dataset(BytesIO(encoded), implicit, little_endian)
    except Exception as error:
        # Whatever a peer sends reaches this parser: every way in which it fails is the peer's fault.
        raise DatasetError(f"the dataset cannot be decoded: {type(error).__name__}") from error


def _tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is not None:
        return tag
    try:
        return int(Tag(int(keyword.replace(",", ""), 16))) if len(keyword.replace(",", "")) == 8 else _unknown(keyword)
    except ValueError:
        return _unknown(keyword)


def _unknown(keyword: str) -> int:
    raise ConfigurationError(f"key {keyword}", keyword, "a keyword of PS3.6 such as PatientID, or a tag such as 00100020")


def _element(tag: int, value: Any) -> DataElement:
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    vr = vr.partition(" or ")[0]
    if vr == "UN":
        value = str(value or "").encode()
    # Matching keys hold wildcards and ranges, which are no valid values of their VR (PS3.4 C.2.2.2).
    return DataElement(tag, vr, None if value == "" else value, validation_mode=pydicom_config.IGNORE)


def _needs_utf8(dataset: Dataset) -> bool:
    return not all(str(element.value).isascii() for element in dataset.iterall() if element.VR != "SQ")
