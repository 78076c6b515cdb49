"""What is read of a file before it is sent: the same however it is read, and no more than is needed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pydicom.data.data_manager import DATA_ROOT

from asyncdicom import Instance
from asyncdicom.errors import DatasetError
from asyncdicom.testing import synthetic_instance
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN

pytestmark = pytest.mark.blocking


def outcome(read: object, path: Path) -> Instance | str:
    try:
        return read(path)  # type: ignore[operator,no-any-return]
    except DatasetError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_file_of_pydicom_s_test_data_is_read_as_pydicom_reads_it() -> None:
    files = [path for path in sorted((Path(DATA_ROOT) / "test_files").rglob("*")) if path.is_file()]
    quick = 0
    for path in files:
        assert outcome(Instance.read, path) == outcome(Instance._parsed, path), path
        quick += Instance._of_head(path, path.read_bytes()[:4096], path.stat().st_size) is not None
    # The walk is worth its while only if it suffices for nearly all.
    assert quick > len(files) / 2


def test_the_dataset_is_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(synthetic_instance())
    instance = Instance.read(path)
    loaded = instance.loaded()
    assert loaded.data == path.read_bytes()[instance.offset :]
    assert (loaded.size, loaded.path, loaded.loaded()) == (instance.size, path, loaded)


def test_a_file_that_became_shorter_is_not_half_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(synthetic_instance())
    instance = Instance.read(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="shorter"):
        instance.loaded()


@pytest.mark.parametrize("length", [0, 1, 3, 1 << 31])
def test_a_group_length_that_lies_is_found_out(tmp_path: Path, length: int) -> None:
    whole = bytearray(synthetic_instance())
    struct.pack_into("<I", whole, 140, length)
    path = tmp_path / "a.dcm"
    path.write_bytes(whole)
    assert outcome(Instance.read, path) == outcome(Instance._parsed, path)


def test_an_element_that_fills_the_head_before_the_uids_does_not_hide_them(tmp_path: Path) -> None:
    whole = synthetic_instance()
    offset = 144 + int.from_bytes(whole[140:144], "little")
    # Specific Character Set, (0008,0005), of a length that no honest writer gives it.
    long = b"\x08\x00\x05\x00CS" + struct.pack("<H", 8_000) + b"ISO_IR 100".ljust(8_000)
    path = tmp_path / "a.dcm"
    path.write_bytes(whole[:offset] + long + whole[offset:])
    instance = Instance.read(path)
    assert (instance.offset, instance.transfer_syntax_uid) == (offset, EXPLICIT_VR_LITTLE_ENDIAN)
    assert instance.sop_instance_uid
