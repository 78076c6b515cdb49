"""Style, types and layers hold, and the text speaks of the project alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import pytest

from tests.house.tree import ROOT, files, where
from tests.peers.running import run_program


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "ruff", "check", "."], id="ruff check"),
        pytest.param(["-m", "ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["-m", "mypy"], id="mypy"),
        pytest.param(["-c", "from importlinter.cli import lint_imports_command as c; c()"], id="lint-imports"),
    ],
)
def test_the_code_is_clean(command: Sequence[str]) -> None:
    checked = run_program([sys.executable, *command], timeout=280, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"(?<![\w.$}])/(?:home|root|Users|work|farm)/\w", "a path of one machine"),
        (r"\b(?:TODO|FIX" + r"ME|XX" + r"X|HACK)\b", "an unfinished mark"),
        (r"raise NotImplemented" + "Error", "a stub"),
    ],
)
def test_nothing_of_one_machine_and_nothing_unfinished_is_left(pattern: str, what: str) -> None:
    found = [
        where(path, number)
        for path in files()
        if path.name != "test_style.py"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{what}: {', '.join(found)}"


def test_no_module_is_a_place_for_what_is_left_over() -> None:
    names = {"core", "utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert not [path for path in files(".py") if path.stem in names or path.parent.name in names]


def test_no_module_does_two_things() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files(".py")}
    assert not {path: lines for path, lines in long.items() if lines > 600}


def test_every_test_is_named_as_a_rule() -> None:
    short = [
        where(path, number)
        for path in (ROOT / "tests").rglob("test_*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := re.match(r"\s*(?:async )?def (test_\w+)", line)) and found[1].count("_") < 2
    ]
    assert not short
