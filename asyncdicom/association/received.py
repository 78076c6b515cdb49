"""An instance that arrived: its bytes as they came, and what was said about it."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from asyncdicom.elements import MAX_INFLATED, Buffer, inflate
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

# Images deflate to a quarter or so; bombs to a thousandth.
_HONEST_RATIO = 8

_PREAMBLE = b"\0" * 128 + b"DICM"
_OB_VERSION = struct.pack("<HH2sHI2s", 0x0002, 0x0001, b"OB", 0, 2, b"\x00\x01")


def _short(element: int, vr: bytes, value: bytes, pad: bytes) -> bytes:
    value += pad * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def file_header(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str = "") -> bytes:
    """Return the preamble, the prefix and the File Meta Information of a DICOM file (PS3.10 section 7.1).

    Written by hand because every stored instance passes here: building it with pydicom costs more than the rest of a small
    store. The tests hold it against pydicom's reader.
    """
    first, last = _around_instance(sop_class_uid, transfer_syntax_uid, source_ae_title)
    body = first + _short(0x0003, b"UI", sop_instance_uid.encode("ascii"), b"\0") + last
    return _PREAMBLE + struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(body)) + body


@functools.lru_cache(maxsize=256)
def _around_instance(sop_class_uid: str, transfer_syntax_uid: str, source_ae_title: str) -> tuple[bytes, bytes]:
    # What comes before and after the SOP Instance UID is the same for a whole series.
    first = _OB_VERSION + _short(0x0002, b"UI", sop_class_uid.encode("ascii"), b"\0")
    last = (
        _short(0x0010, b"UI", transfer_syntax_uid.encode("ascii"), b"\0")
        + _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii"), b"\0")
        + _short(0x0013, b"SH", IMPLEMENTATION_VERSION.encode("ascii"), b" ")
    )
    if source_ae_title.strip():
        # What a peer calls itself need not be conformant; the file must be.
        title = source_ae_title.strip().encode("ascii", "replace")[:16].replace(b"\\", b"?")
        last += _short(0x0016, b"AE", bytes(c if 0x20 <= c < 0x7F else 0x3F for c in title), b" ")
    return first, last


class Received:
    """An instance from a C-STORE request, never decoded on its way here.

    :param data: the dataset exactly as it was encoded by the sender, without File Meta Information; in parts, as they came
    :ivar parts: the same
    :ivar sop_class_uid: Affected SOP Class UID of the request
    :ivar sop_instance_uid: Affected SOP Instance UID of the request
    :ivar transfer_syntax_uid: what was agreed for its presentation context
    :ivar calling_ae_title: the sender as it called itself, without padding
    :ivar called_ae_title: as it called us
    :ivar peer_address: its address
    :ivar move_originator_ae_title: who asked for it by C-MOVE, if anybody
    :ivar move_originator_message_id: the Message ID of that C-MOVE
    :ivar path: where it lies, once it is archived
    """

    def __init__(
        self,
        data: Buffer | Sequence[Buffer],
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax_uid: str,
        calling_ae_title: str = "",
        called_ae_title: str = "",
        peer_address: str = "",
        move_originator_ae_title: str | None = None,
        move_originator_message_id: int | None = None,
    ) -> None:
        self.parts: Sequence[Buffer] = (data,) if isinstance(data, Buffer) else data
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.calling_ae_title = calling_ae_title
        self.called_ae_title = called_ae_title
        self.peer_address = peer_address
        self.move_originator_ae_title = move_originator_ae_title
        self.move_originator_message_id = move_originator_message_id
        self.path: Path | None = None

    @property
    def data(self) -> Buffer:
        """The dataset exactly as it was encoded by the sender, without File Meta Information."""
        if len(self.parts) != 1:
            # Joined when somebody wants it so; an archive does not.
            self.parts = (b"".join(self.parts),)
        return self.parts[0]

    @property
    def size(self) -> int:
        """Bytes of the dataset."""
        return sum(len(part) for part in self.parts)

    def __repr__(self) -> str:
        # UIDs name an instance, not a patient; what else there is may.
        return f"<Received {self.sop_instance_uid} of {self.size} bytes>"

    @cached_property
    def header(self) -> bytes:
        """Preamble, prefix and File Meta Information."""
        return file_header(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid, self.calling_ae_title)

    @property
    def encoded(self) -> bytes:
        """The whole DICOM file (PS3.10): what an archive writes."""
        return self.header + bytes(self.data)

    @cached_property
    def file_meta(self) -> FileMetaDataset:
        """The File Meta Information."""
        return dcmread(BytesIO(self.header)).file_meta

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset with its File Meta Information, decoded when first asked for.

        :raises DatasetError: when it cannot be decoded, or when deflated becomes more than 4 MiB and more than 8 times what
            it was; whoever expects such ones inflates :attr:`data` himself
        """
        encoded = self.encoded
        is_deflated = self.transfer_syntax_uid == uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        if is_deflated:
            inflated = inflate(self.data, max(MAX_INFLATED, _HONEST_RATIO * self.size))
            plain = uid.EXPLICIT_VR_LITTLE_ENDIAN
            encoded = file_header(self.sop_class_uid, self.sop_instance_uid, plain, self.calling_ae_title) + inflated
        try:
            dataset = dcmread(BytesIO(encoded))
            if is_deflated:
                dataset.file_meta.TransferSyntaxUID = UID(self.transfer_syntax_uid)
            return dataset
        except Exception as error:
            # Whatever a peer sends reaches this parser: every way in which it fails is the peer's fault.
            raise DatasetError(f"the dataset cannot be decoded: {type(error).__name__}") from error
