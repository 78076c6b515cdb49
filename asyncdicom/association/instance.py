"""An instance to be sent: which one it is, and where its encoded bytes lie."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom.dsutils import split_dataset

from asyncdicom.association.query import encode_dataset
from asyncdicom.elements import DEFLATED, scan, walk
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer.context import PresentationContext

_SYNTAX = 0x00020010
_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_MAX_UID = 64
# As much of a file as holds its File Meta Information and the first elements, as good as always.
_HEAD = 4096


@dataclass(frozen=True)
class Instance:
    """A SOP instance with its dataset exactly as it is encoded, in a file or in memory.

    :ivar sop_class_uid: SOP Class UID (0008,0016)
    :ivar sop_instance_uid: SOP Instance UID (0008,0018)
    :ivar transfer_syntax_uid: how the dataset is encoded
    :ivar path: the file, None when there is none
    :ivar offset: where the dataset begins in the file, in bytes
    :ivar size: bytes of the dataset
    :ivar data: the dataset, when it lies in memory
    :raises DatasetError: when a UID is none
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path | None = None
    offset: int = 0
    size: int = 0
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        where = f"{self.path}: " if self.path is not None else ""
        for name in ("sop_class_uid", "sop_instance_uid", "transfer_syntax_uid"):
            value: str = getattr(self, name)
            if not 0 < len(value) <= _MAX_UID:
                raise DatasetError(
                    f"{where}cannot be sent: {name} has {len(value)} characters, it has 1 to {_MAX_UID} (PS3.5 section 9.1)"
                )

    @classmethod
    def read(cls, path: str | Path) -> Instance:
        """Read what is needed to send a DICOM file (PS3.10). Blocks; the dataset itself is not read.

        :raises DatasetError: when the file cannot be read, is no DICOM file, or lacks one of the three UIDs
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                head = os.read(descriptor, _HEAD)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls._of_head(path, head, size) or cls._parsed(path)

    @classmethod
    def _of_head(cls, path: Path, head: bytes, size: int) -> Instance | None:
        """What the beginning of a file tells; None for any but the most usual kind of file."""
        if head[128:132] != b"DICM" or head[132:140] != b"\x02\0\0\0UL\x04\0":
            return None
        offset = 144 + int.from_bytes(head[140:144], "little")
        try:
            view = memoryview(head)
            meta = scan(view[144:offset], explicit=True, little_endian=True, wanted=frozenset({_SYNTAX}), last=_SYNTAX)
            transfer_syntax = meta.get(_SYNTAX, b"").decode("ascii").strip("\0 ")
            if transfer_syntax in DEFLATED or offset >= len(head) or head[offset : offset + 2] == b"\x02\0":
                return None
            whole = size <= len(head)
            uids = walk(view[offset:], transfer_syntax, frozenset({_SOP_CLASS, _SOP_INSTANCE}), is_whole=whole)
            sop_class, sop_instance = (uids.get(tag, b"").decode("ascii").strip("\0 ") for tag in (_SOP_CLASS, _SOP_INSTANCE))
        except (DatasetError, UnicodeDecodeError):
            return None
        if not (sop_class and sop_instance and transfer_syntax):
            return None
        return cls(sop_class, sop_instance, transfer_syntax, path, offset, size - offset)

    @classmethod
    def _parsed(cls, path: Path) -> Instance:
        try:
            meta, offset = split_dataset(path)
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
            size = path.stat().st_size - offset
        except InvalidDicomError:
            raise DatasetError(f"{path}: not a DICOM file: it has no preamble and prefix (PS3.10 section 7.1)") from None
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:
            # A damaged file makes the parser fail in every way there is.
            raise DatasetError(f"{path}: a damaged DICOM file ({type(error).__name__})") from error
        uids = {
            "SOP Class UID": dataset.get("SOPClassUID"),
            "SOP Instance UID": dataset.get("SOPInstanceUID"),
            "Transfer Syntax UID": meta.get("TransferSyntaxUID"),
        }
        missing = [name for name, value in uids.items() if not value]
        if missing:
            raise DatasetError(f"{path}: cannot be sent without {' and '.join(missing)}")
        sop_class, sop_instance, transfer_syntax = (str(value) for value in uids.values())
        return cls(sop_class, sop_instance, transfer_syntax, path, offset, size)

    @classmethod
    def of(cls, dataset: Dataset) -> Instance:
        """Make an instance of a pydicom dataset with File Meta Information.

        :raises DatasetError: when it lacks one of the three UIDs or cannot be encoded
        """
        transfer_syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        if not transfer_syntax or "SOPClassUID" not in dataset or "SOPInstanceUID" not in dataset:
            raise DatasetError("a dataset to be sent needs SOPClassUID, SOPInstanceUID and file_meta.TransferSyntaxUID")
        encoded = encode_dataset(dataset, str(transfer_syntax))
        return cls(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(transfer_syntax), size=len(encoded), data=encoded)

    def loaded(self) -> Instance:
        """The same with its dataset in memory. Blocks.

        :raises OSError: when the file cannot be read
        """
        if self.data is not None or self.path is None:
            return self
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)
        if len(data) < self.size:
            raise OSError(errno.EIO, "the file has become shorter")
        return replace(self, data=data)

    @property
    def context(self) -> PresentationContext:
        """The presentation context that it needs: its own transfer syntax alone, so that nothing is converted."""
        return PresentationContext(self.sop_class_uid, (self.transfer_syntax_uid,))
