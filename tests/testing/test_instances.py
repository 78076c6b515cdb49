"""Synthetic instances."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from asyncdicom.errors import ConfigurationError
from asyncdicom.testing import HeldInstance, synthetic_instance, synthetic_study, synthetic_uid
from asyncdicom.testing.instances import CT_IMAGE_STORAGE, MR_IMAGE_STORAGE, SECONDARY_CAPTURE
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from tests.peers.programs import program
from tests.peers.running import run_program


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("sop_class", [CT_IMAGE_STORAGE, MR_IMAGE_STORAGE, SECONDARY_CAPTURE])
@pytest.mark.parametrize("transfer_syntax", [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
def test_dciodvfy_finds_nothing_wrong(sop_class: str, transfer_syntax: str, tmp_path: Path) -> None:
    path = tmp_path / "instance.dcm"
    path.write_bytes(synthetic_instance(number=123, sop_class=sop_class, transfer_syntax=transfer_syntax))
    report = run_program([program("dciodvfy"), path])
    assert "Error" not in report.stdout + report.stderr
    assert "Warning" not in report.stdout + report.stderr


def test_nobody_can_mistake_it_for_a_patients() -> None:
    dataset = dcmread(BytesIO(synthetic_instance()))
    assert dataset.PatientID == "ASYNCDICOM-TEST"
    assert dataset.PatientName == "Synthetic^Test"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 64), (512, 512)])
def test_it_has_the_pixels_that_were_asked_for(rows: int, columns: int) -> None:
    dataset = dcmread(BytesIO(synthetic_instance(rows, columns)))
    assert (dataset.Rows, dataset.Columns, len(dataset.PixelData)) == (rows, columns, rows * columns * 2)
    assert max(dataset.PixelData[1::2]) <= 0x0F


def test_a_study_is_one_series_of_different_instances() -> None:
    study = [(uid, dcmread(BytesIO(data))) for uid, data in synthetic_study(5)]
    assert [dataset.InstanceNumber for _, dataset in study] == [1, 2, 3, 4, 5]
    assert [float(dataset.SliceLocation) for _, dataset in study] == [-1, -2, -3, -4, -5]
    assert len({dataset.PixelData for _, dataset in study}) == 5
    for uid, dataset in study:
        assert uid == dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({dataset[keyword].value for _, dataset in study}) == 1
    assert len({uid for uid, _ in study}) == 5


def test_the_same_arguments_give_the_same_bytes_and_another_seed_another_study() -> None:
    assert list(synthetic_study(3, seed=4)) == list(synthetic_study(3, seed=4))
    ours, others = dict(synthetic_study(3, seed=4)), dict(synthetic_study(3, seed=5))
    assert not ours.keys() & others.keys()


def test_studies_and_series_can_be_named() -> None:
    dataset = dcmread(BytesIO(synthetic_instance(study="1.2.3", series="1.2.3.4")))
    assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == ("1.2.3", "1.2.3.4")
    named = synthetic_uid("mine")
    assert dcmread(BytesIO(synthetic_instance(study=named))).StudyInstanceUID == named


def test_another_size_is_another_instance() -> None:
    first, second = (dcmread(BytesIO(synthetic_instance(size, size))) for size in (8, 16))
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_uids_have_one_length_and_are_valid() -> None:
    uids = {synthetic_uid("a", number) for number in range(200)}
    assert len(uids) == 200
    assert {len(uid) for uid in uids} == {44}
    assert all(int(uid.removeprefix("2.25.")) < 2**128 for uid in uids)


@pytest.mark.parametrize(
    "change",
    [{"rows": 0}, {"columns": 65_536}, {"number": 0}, {"number": 1_000_000}, {"transfer_syntax": "1.2.840.10008.1.2.4.70"}],
)
def test_an_argument_out_of_range_is_a_configuration_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        synthetic_instance(**change)


def test_a_file_is_taken_apart_where_its_dataset_begins() -> None:
    data = synthetic_instance()
    held = HeldInstance.read(data)
    assert held.file[: len(data) - len(held.dataset)][128:132] == b"DICM"
    assert bytes(held.dataset[:4]) == b"\x08\x00\x05\x00"
    assert held.transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN


@pytest.mark.parametrize("data", [b"", b"x" * 200, b"\0" * 128 + b"DICM" + b"\0" * 50])
def test_what_is_no_dicom_file_is_a_configuration_error(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not a DICOM file"):
        HeldInstance.read(data)
