"""Synthetic instances: DICOM files that nobody can mistake for a patient's, made fast.

A template is encoded once for each size and SOP class; what differs between instances (UIDs, numbers, position, pixels) has a
fixed length and is written over it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from asyncdicom.errors import ConfigurationError
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, UNCOMPRESSED
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

PATIENT_ID = "ASYNCDICOM-TEST"
PATIENT_NAME = "Synthetic^Test"

# CT numbers have 12 bits here: the upper byte of a pixel must stay below this.
_UPPER = 0x0F
_LARGEST = 65_535


def synthetic_uid(*parts: object) -> str:
    """Return a UID of 44 characters that depends on nothing but its arguments (under the root of PS3.5 B.2)."""
    digest = hashlib.blake2b("\0".join(str(part) for part in parts).encode(), digest_size=16).digest()
    # 39 digits without a leading zero: every UID has the same even length, so one can be written over another.
    return f"2.25.{10**38 + int.from_bytes(digest, 'big') % (2 * 10**38)}"


@dataclass(frozen=True, slots=True)
class _Template:
    encoded: bytes
    offsets: dict[str, tuple[int, ...]]
    pixels: int
    noise: bytes


_PLACEHOLDERS = {
    "instance": "2.25." + "1" * 39,
    "study": "2.25." + "2" * 39,
    "series": "2.25." + "3" * 39,
    "frame": "2.25." + "4" * 39,
    "number": "777777",
    "position": "-88888.8",
}


def synthetic_instance(
    rows: int = 64,
    columns: int = 64,
    *,
    study: str | None = None,
    series: str | None = None,
    number: int = 1,
    seed: int | str = 0,
    sop_class: str = CT_IMAGE_STORAGE,
    transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN,
) -> bytes:
    """Return a whole DICOM file (PS3.10) of a synthetic image of 16 bits a pixel.

    The same arguments give the same bytes. PatientID is ``ASYNCDICOM-TEST``.

    :param rows: 1 to 65535
    :param columns: 1 to 65535
    :param study: a Study Instance UID; made of ``seed`` when None. UIDs other than :func:`synthetic_uid` makes take longer
    :param series: a Series Instance UID; made of ``seed`` and ``study`` when None
    :param number: the Instance Number, 1 to 999999
    :param seed: another seed, another study and other instances
    :param sop_class: CT, MR, or any other, which gets the attributes of Secondary Capture
    :param transfer_syntax: explicit or implicit VR little endian
    :raises ConfigurationError: when an argument is out of its range
    """
    return _instance(rows, columns, study, series, number, seed, sop_class, transfer_syntax)[1]


def synthetic_study(
    count: int,
    rows: int = 64,
    columns: int = 64,
    *,
    study: str | None = None,
    series: str | None = None,
    seed: int | str = 0,
    sop_class: str = CT_IMAGE_STORAGE,
    transfer_syntax: str = EXPLICIT_VR_LITTLE_ENDIAN,
) -> Iterator[tuple[str, bytes]]:
    """Yield the instances of one series, numbered from 1: SOP Instance UID and DICOM file.

    :param count: how many; the other parameters are as in :func:`synthetic_instance`
    :raises ConfigurationError: when an argument is out of its range
    """
    for number in range(1, count + 1):
        yield _instance(rows, columns, study, series, number, seed, sop_class, transfer_syntax)


def _instance(
    rows: int,
    columns: int,
    study: str | None,
    series: str | None,
    number: int,
    seed: int | str,
    sop_class: str,
    transfer_syntax: str,
) -> tuple[str, bytes]:
    if not 1 <= number <= 999_999:
        raise ConfigurationError("number", number, "an instance number from 1 to 999999")
    study = study or synthetic_uid("study", seed)
    series = series or synthetic_uid("series", study, seed, sop_class)
    instance = synthetic_uid("instance", study, series, number, seed, rows, columns, sop_class)
    if len(study) != len(_PLACEHOLDERS["study"]) or len(series) != len(_PLACEHOLDERS["series"]):
        # UIDs of the caller's own: they change the lengths, so they need a template of their own.
        template = _template(rows, columns, sop_class, transfer_syntax, study, series)
    else:
        template = _template(rows, columns, sop_class, transfer_syntax, _PLACEHOLDERS["study"], _PLACEHOLDERS["series"])
    encoded = bytearray(template.encoded)
    values = {
        "instance": instance,
        "study": study,
        "series": series,
        "frame": synthetic_uid("frame of reference", series),
        "number": f"{number:<6}",
        "position": f"{-number:<8}"[:8],
    }
    for name, value in values.items():
        replacement = value.encode("ascii")
        for offset in template.offsets[name]:
            encoded[offset : offset + len(replacement)] = replacement
    _paint(encoded, template, instance)
    return instance, bytes(encoded)


def _paint(encoded: bytearray, template: _Template, instance: str) -> None:
    """Give the instance pixels of its own: the template's noise from another place, and its UID as a pattern."""
    start, length = template.pixels, len(template.noise) // 2
    digest = hashlib.blake2b(instance.encode("ascii"), digest_size=32).digest()
    shift = int.from_bytes(digest[:4], "big") % (length // 2) * 2
    encoded[start : start + length] = memoryview(template.noise)[shift : shift + length]
    for index, byte in enumerate(digest[: length // 2]):
        encoded[start + 2 * index] = byte


# A template of 512 by 512 pixels holds 1.5 MB.
@lru_cache(maxsize=16)
def _template(rows: int, columns: int, sop_class: str, transfer_syntax: str, study: str, series: str) -> _Template:
    for name, value in (("rows", rows), ("columns", columns)):
        if not 1 <= value <= _LARGEST:
            raise ConfigurationError(name, value, f"from 1 to {_LARGEST}")
    if transfer_syntax not in UNCOMPRESSED:
        raise ConfigurationError("transfer_syntax", transfer_syntax, "explicit or implicit VR little endian")
    dataset = _attributes(rows, columns, sop_class, study, series)
    length = rows * columns * 2
    dataset.PixelData = bytes(length)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(_PLACEHOLDERS["instance"])
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    encoded = buffer.getvalue()
    header = encoded[: len(encoded) - length]
    offsets = {name: _offsets(header, value.encode("ascii")) for name, value in _PLACEHOLDERS.items()}
    # Twice the length, so that every instance can begin elsewhere in it; reproducible, and of 12 bits a pixel.
    noise = bytearray(random.Random(f"{rows}x{columns}").randbytes(2 * length))
    noise[1::2] = noise[1::2].translate(bytes(value & _UPPER for value in range(256)))
    return _Template(encoded, offsets, len(header), bytes(noise))


def _offsets(data: bytes, value: bytes) -> tuple[int, ...]:
    found = []
    at = data.find(value)
    while at >= 0:
        found.append(at)
        at = data.find(value, at + len(value))
    return tuple(found)


def _attributes(rows: int, columns: int, sop_class: str, study: str, series: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = UID(sop_class)
    dataset.SOPInstanceUID = UID(_PLACEHOLDERS["instance"])
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20000101"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = "TEST"
    dataset.Manufacturer = "asyncdicom"
    dataset.InstitutionName = "asyncdicom test data"
    dataset.ReferringPhysicianName = ""
    dataset.StationName = "SYNTHETIC"
    dataset.StudyDescription = "Synthetic test data"
    dataset.SeriesDescription = "Synthetic test data"
    dataset.ManufacturerModelName = "asyncdicom.testing"
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = PATIENT_ID
    dataset.PatientBirthDate = "20000101"
    dataset.PatientSex = "O"
    dataset.PatientComments = "Synthetic test data: not a patient"
    dataset.BodyPartExamined = "CHEST"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = IMPLEMENTATION_VERSION
    dataset.StudyInstanceUID = UID(study)
    dataset.SeriesInstanceUID = UID(series)
    dataset.StudyID = "TEST"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = _PLACEHOLDERS["number"]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = "1024", "4096"
    if sop_class == CT_IMAGE_STORAGE:
        _add_ct(dataset)
    elif sop_class == MR_IMAGE_STORAGE:
        _add_mr(dataset)
    else:
        dataset.Modality = "OT"
        dataset.ImageType = ["DERIVED", "SECONDARY"]
        dataset.ConversionType = "SYN"
        dataset.PatientOrientation = ""
    return dataset


def _add_position(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = UID(_PLACEHOLDERS["frame"])
    dataset.PositionReferenceIndicator = ""
    dataset.SliceThickness = "1"
    dataset.PatientPosition = "HFS"
    dataset.ImagePositionPatient = ["0", "0", _PLACEHOLDERS["position"]]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.SliceLocation = _PLACEHOLDERS["position"]
    dataset.PixelSpacing = ["1", "1"]


def _add_ct(dataset: Dataset) -> None:
    _add_position(dataset)
    dataset.Modality = "CT"
    dataset.KVP = "120"
    dataset.AcquisitionNumber = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"


def _add_mr(dataset: Dataset) -> None:
    _add_position(dataset)
    dataset.Modality = "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ScanningSequence = "SE"
    dataset.SequenceVariant = "NONE"
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = "500", "10", "1"
