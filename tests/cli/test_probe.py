"""``asyncdicom probe`` with the modules of a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from asyncdicom.testing import SimulatedModality
from tests.cli.conftest import Run


@pytest.mark.blocking
async def test_the_command_knows_the_modules_of_the_configuration(asyncdicom: Run, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    async with SimulatedModality(matches=[{"StudyInstanceUID": f"1.2.{number}"} for number in range(3)]) as sim:
        modality = f'[[modality]]\nname = "sim"\nae_title = "SIM"\nhost = "127.0.0.1"\nport = {sim.port}\n'
        config.write_text(modality + '[[probe]]\nname = "many"\noperation = "find"\nmin_matches = 4\n')
        many = await asyncdicom("probe", "sim", "--module", "many", "--config", str(config), "--json")
        few = await asyncdicom("probe", "sim", "--module", "find", "--config", str(config))
        unknown = await asyncdicom("probe", "sim", "--module", "mnay", "--config", str(config))
    assert (many.status, few.status, unknown.status) == (1, 0, 2)
    told = json.loads(many.out)
    assert (told["ok"], told["reason"], told["matches"], told["min_matches"]) == (False, "ok", 3, 4)
    assert "one of echo, find, worklist, store, many" in unknown.err


async def test_a_module_with_mistakes_is_a_mistake_of_the_configuration(asyncdicom: Run, tmp_path: Path) -> None:
    await anyio.Path(tmp_path / "a.toml").write_text('[[probe]]\nname = "week"\noperation = "find"\nkeys = { Today = "" }\n')
    result = await asyncdicom("probe", "SIM@127.0.0.1:1", "--config", tmp_path / "a.toml")
    assert (result.status, result.out) == (2, "")
    assert "probe[0].keys.Today = '': write a keyword of PS3.6" in result.err
