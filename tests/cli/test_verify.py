"""``asyncdicom verify``."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdicom import Archive
from tests.archive.instances import study
from tests.cli.conftest import Run

# The command runs in a process of its own: what blocks here are the files that a test writes for it.
pytestmark = pytest.mark.blocking

CONFIG = """
[scp]
port = 0
[archive]
directory = "archive"
index = "sqlite:index.db"
min_free = "0 B"
"""


async def _kept(folder: Path) -> list[Path]:
    (folder / "site.toml").write_text(CONFIG)
    async with Archive(folder / "archive", index=f"sqlite:{folder / 'index.db'}") as archive:
        return [path for instance in study(5) if (path := (await archive.store(instance)).path) is not None]


async def test_an_archive_that_is_whole_is_said_to_be(asyncdicom: Run, folder: Path) -> None:
    await _kept(folder)
    result = await asyncdicom("verify", "--config", "site.toml")
    assert (result.status, result.err) == (0, "")
    assert result.lines[-1].startswith("5 of 5 instances are as they arrived")


async def test_differences_are_told_with_what_to_do_and_end_in_status_1(asyncdicom: Run, folder: Path) -> None:
    damaged, missing, *_ = await _kept(folder)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    missing.unlink()
    result = await asyncdicom("verify", "--config", "site.toml")
    assert result.status == 1
    assert any(line.startswith("damaged: ") and damaged.name in line for line in result.lines)
    assert any(line.startswith("1 missing: restore the file") for line in result.lines)
    assert result.lines[-1].startswith("3 of 5 instances are as they arrived")
    as_json = await asyncdicom("verify", "--config", "site.toml", "--json")
    assert as_json.status == 1
    assert {(row["kind"], Path(row["path"]).name) for row in as_json.rows} == {
        ("damaged", damaged.name),
        ("missing", missing.name),
    }
    assert as_json.summary["differences"] == {"missing": 1, "damaged": 1, "unreadable": 0, "unknown": 0}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "there is no [archive] to verify"),
        (CONFIG, "it cannot be read"),
        (CONFIG.replace("sqlite:index.db", "none"), "nothing tells what was acknowledged"),
    ],
)
async def test_what_cannot_be_verified_is_a_usage_error(asyncdicom: Run, folder: Path, config: str, said: str) -> None:
    (folder / "site.toml").write_text(config)
    result = await asyncdicom("verify", "--config", "site.toml")
    assert result.status == 2
    assert said in result.err
