"""Small synthetic CT instances as files, to fill a foreign archive with."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS = COLUMNS = 16


def ct_instance(
    *, study_instance_uid: str, series_instance_uid: str, number: int, patient_id: str, patient_name: str
) -> Dataset:
    """A CT image of 16 by 16 pixels that conforms as far as archives look."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20260102"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "101500"
    dataset.AccessionNumber = f"A{patient_id}"
    dataset.Modality = "CT"
    dataset.Manufacturer = "asyncdicom"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Synthetic"
    dataset.PatientName = patient_name
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.StudyInstanceUID = study_instance_uid
    dataset.SeriesInstanceUID = series_instance_uid
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    dataset.PositionReferenceIndicator = ""
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope = "0", "1"
    dataset.PixelData = number.to_bytes(2, "little") * (ROWS * COLUMNS)
    return dataset


def write_study(folder: Path, count: int = 3, *, patient_id: str = "P1", patient_name: str = "Doe^Jane") -> list[Path]:
    """Write a study of one series as DICOM files.

    :param count: instances
    :return: the files, by instance number
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(1, count + 1):
        dataset = ct_instance(
            study_instance_uid=study,
            series_instance_uid=series,
            number=number,
            patient_id=patient_id,
            patient_name=patient_name,
        )
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{patient_id}-{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
