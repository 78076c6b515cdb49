"""An instance to be sent: which one it is, and where its encoded bytes lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom.dsutils import split_dataset

from asyncdicom.association.query import encode_dataset
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer.context import PresentationContext


@dataclass(frozen=True)
class Instance:
    """A SOP instance with its dataset exactly as it is encoded, in a file or in memory.

    :ivar sop_class_uid: SOP Class UID (0008,0016)
    :ivar sop_instance_uid: SOP Instance UID (0008,0018)
    :ivar transfer_syntax_uid: how the dataset is encoded
    :ivar path: the file, None when it lies in memory
    :ivar offset: where the dataset begins in the file, in bytes
    :ivar size: bytes of the dataset
    :ivar data: the dataset, when it lies in memory
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path | None = None
    offset: int = 0
    size: int = 0
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, path: str | Path) -> Instance:
        """Read what is needed to send a DICOM file (PS3.10). Blocks; the dataset itself is not read.

        :raises DatasetError: when the file cannot be read, is no DICOM file, or lacks one of the three UIDs
        """
        path = Path(path)
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

    @property
    def context(self) -> PresentationContext:
        """The presentation context that it needs: its own transfer syntax alone, so that nothing is converted."""
        return PresentationContext(self.sop_class_uid, (self.transfer_syntax_uid,))
