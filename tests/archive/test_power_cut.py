"""The power is cut (R2): what was acknowledged is there after the next mount, byte for byte and indexed.

The file system is cut off from its device and forgets everything in memory: pages that were not written, and the part of its
log that was not committed. What a device loses of its own memory is not shown by this; that it is told to write everything
out before an acknowledgement is (R3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archive.dying import campaign, require_power_cuts


@pytest.mark.timeout(120)
def test_what_was_acknowledged_survives_power_cuts(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    require_power_cuts("mkfs.ext4")
    found = campaign(tmp_path / "cut", "--deaths", "20", cut="mkfs.ext4 -q")
    record_property("ext4", str(found))
    found.check(20)


def test_a_power_cut_takes_what_was_not_synced(tmp_path: Path) -> None:
    """The test above can fail: without syncs, the last seconds are gone."""
    require_power_cuts("mkfs.ext4")
    found = campaign(tmp_path / "cut", "--deaths", "5", "--durability", "none", cut="mkfs.ext4 -q")
    assert found.acknowledged
    assert found.lost or found.torn or found.broken


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("make", ["mkfs.ext4 -q", "mkfs.xfs -q"])
@pytest.mark.parametrize(("duplicates", "seed"), [("keep-first", "a"), ("keep-first", "b"), ("replace", "c")])
def test_what_was_acknowledged_survives_many_power_cuts(
    tmp_path: Path, record_property: Callable[[str, object], None], make: str, duplicates: str, seed: str
) -> None:
    require_power_cuts(make.split()[0])
    found = campaign(tmp_path / "cut", "--deaths", "50", "--seed", seed, "--duplicates", duplicates, cut=make, timeout=900)
    record_property(f"{make}, {duplicates}", str(found))
    found.check(50)
