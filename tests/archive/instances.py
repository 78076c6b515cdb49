"""Instances to store, and what lies in an archive afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import anyio.to_thread
from pydicom.dataset import Dataset

from asyncdicom.association.query import encode_dataset
from asyncdicom.association.received import Received
from asyncdicom.testing.instances import CT_IMAGE_STORAGE, synthetic_study
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN


def study(count: int, *, seed: int | str = 0, rows: int = 8, calling_ae_title: str = "CT1") -> list[Received]:
    """Instances of one series."""
    return [received(uid, encoded, calling_ae_title) for uid, encoded in synthetic_study(count, rows, 8, seed=seed)]


def received(uid: str, encoded: bytes, calling_ae_title: str = "CT1") -> Received:
    """An instance as it would have arrived, from a DICOM file."""
    offset = 144 + int.from_bytes(encoded[140:144], "little")
    return Received(
        encoded[offset:], CT_IMAGE_STORAGE, uid, EXPLICIT_VR_LITTLE_ENDIAN, calling_ae_title, peer_address="127.0.0.1"
    )


def one(*, seed: int | str = 0, rows: int = 8) -> Received:
    """An instance."""
    return study(1, seed=seed, rows=rows)[0]


def altered(instance: Received, content: int) -> Received:
    """Another object under the same SOP Instance UID: other pixels."""
    data = bytes(instance.data)[:-4] + content.to_bytes(4, "little")
    return Received(
        data,
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        instance.calling_ae_title,
        peer_address=instance.peer_address,
    )


def with_attributes(uid: str = "1.2.3", transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN, **attributes: str) -> Received:
    """A minimal instance with attributes of one's own."""
    dataset = Dataset()
    dataset.SOPClassUID = CT_IMAGE_STORAGE
    dataset.SOPInstanceUID = uid
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return Received(encode_dataset(dataset, transfer_syntax), CT_IMAGE_STORAGE, uid, transfer_syntax, "CT1")


def sha256(instance: Received) -> str:
    """What tells whether two datasets are the same."""
    return hashlib.sha256(instance.data).hexdigest()


def everything_in(directory: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its relative path."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if not path.is_dir()}


async def files_in(directory: Path) -> dict[str, bytes]:
    """The same from an event loop."""
    return await anyio.to_thread.run_sync(everything_in, directory)


def folders_in(directory: Path) -> list[str]:
    """Every folder below a folder."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_dir())
