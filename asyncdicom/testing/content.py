"""What a simulated modality holds, and what it was sent."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from asyncdicom.errors import ConfigurationError, ProtocolError
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

Keep = Literal["bytes", "hash", "nothing"]
MatchLike = Dataset | Mapping[str, Any]
Matches = Sequence[MatchLike] | Callable[[Dataset], Iterable[MatchLike]]

_META_START = 132
_GROUP_LENGTH_ELEMENT = struct.Struct("<HH2sHI")
# What inflates beyond this is no query.
_MAX_INFLATED = 16 << 20
# PS3.4 Table C.6-1: the attributes by which a retrieval names what it wants.
_RETRIEVE_KEYS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance that a simulated modality was sent by C-STORE.

    :ivar sha256: of the dataset as received, as hexadecimal text; empty when nothing is kept
    :ivar data: the dataset as received, without File Meta Information; None unless bytes are kept
    :ivar status: what the sender was answered
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    size: int
    status: int
    sha256: str = ""
    data: bytes | None = field(default=None, repr=False)
    move_originator_ae_title: str | None = None
    move_originator_message_id: int | None = None

    @classmethod
    def keep(cls, keep: Keep, data: bytes | bytearray | memoryview, **fields: Any) -> Stored:
        """Remember an instance, as much of it as is asked for."""
        digest = "" if keep == "nothing" else hashlib.sha256(data).hexdigest()
        return cls(size=len(data), sha256=digest, data=bytes(data) if keep == "bytes" else None, **fields)


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """An instance that a simulated modality gives away by C-GET and C-MOVE.

    :ivar file: the whole DICOM file
    :ivar dataset: the part of it that a C-STORE carries
    :ivar keys: its Patient ID and UIDs by keyword
    """

    file: bytes = field(repr=False)
    dataset: memoryview = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    keys: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, file: bytes) -> HeldInstance:
        """Take a DICOM file apart (PS3.10 section 7.1).

        :raises ConfigurationError: when it is none
        """
        try:
            if file[128:132] != b"DICM":
                raise ValueError("no DICM prefix")
            group, element, _, _, length = _GROUP_LENGTH_ELEMENT.unpack_from(file, _META_START)
            if (group, element) != (2, 0):
                raise ValueError("no File Meta Information Group Length")
            offset = _META_START + _GROUP_LENGTH_ELEMENT.size + length
            dataset = dcmread(BytesIO(file), stop_before_pixels=True, specific_tags=[*_RETRIEVE_KEYS, "SOPClassUID"])
            return cls(
                file,
                memoryview(file)[offset:],
                str(dataset.SOPClassUID),
                str(dataset.SOPInstanceUID),
                str(dataset.file_meta.TransferSyntaxUID),
                {keyword: str(dataset.get(keyword, "")) for keyword in _RETRIEVE_KEYS},
            )
        except Exception as error:
            # pydicom fails in many ways on what is no DICOM file.
            raise ConfigurationError("instances", f"{len(file)} bytes", f"not a DICOM file: {error}") from error

    def matches(self, identifier: Dataset) -> bool:
        """Whether a retrieval asks for this instance: every key that has a value names it, alone or in a list."""
        for keyword in _RETRIEVE_KEYS:
            value = identifier.get(keyword)
            if not value:
                continue
            wanted = [value] if isinstance(value, str) else list(value)
            if self.keys[keyword] not in wanted:
                return False
        return True


def as_dataset(match: MatchLike) -> Dataset:
    """Return a match as a dataset; a mapping is keyword to value."""
    if isinstance(match, Dataset):
        return match
    dataset = Dataset()
    for keyword, value in match.items():
        setattr(dataset, keyword, value)
    if "SpecificCharacterSet" not in dataset and not all(str(value).isascii() for value in match.values()):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """Encode a dataset without File Meta Information."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = transfer_syntax != EXPLICIT_VR_BIG_ENDIAN
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(buffer, dataset)
    encoded = bytes(buffer.getvalue())
    if transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        encoded = deflater.compress(encoded) + deflater.flush()
        encoded += b"\0" * (len(encoded) % 2)
    return encoded


def decode_dataset(encoded: bytes | bytearray | memoryview | None, transfer_syntax: str) -> Dataset:
    """Decode an identifier.

    :raises ProtocolError: when it cannot be decoded
    """
    data = bytes(encoded or b"")
    try:
        if transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            data = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data, _MAX_INFLATED)
        implicit = transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
        return read_dataset(BytesIO(data), implicit, transfer_syntax != EXPLICIT_VR_BIG_ENDIAN)
    except Exception as error:
        # Whatever a peer sends reaches this parser: every way in which it fails is the peer's fault.
        raise ProtocolError(f"the identifier cannot be decoded: {type(error).__name__}") from error
