"""The documentation: links lead somewhere, commands exist, and every key and metric is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from asyncdicom.fleet import inventory
from asyncdicom.outcome import Reason
from asyncdicom.service import config
from tests.deploy.exposition import exposed_names, full_metrics
from tests.house.tree import ROOT, files, where

_PAGES = list(files(".md"))
_MAKEFILE = (ROOT / "Makefile").read_text()
_TARGETS = set(re.findall(r"^([a-z]+):", _MAKEFILE, re.MULTILINE))


def _text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _links(page: Path) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced:
            yield from ((number, link) for link in re.findall(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)", line))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for number, link in _links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{where(page, number)}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{where(page, number)}: {link}"


def _commands(page: Path, pattern: str) -> Iterator[tuple[int, str]]:
    """What is written as a command: in a block of code, or between backticks."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        spans = [line] if fenced else re.findall(r"`([^`]+)`", line)
        for span in spans:
            if found := re.match(pattern, span):
                yield number, found[1]


def test_every_make_command_of_the_documentation_is_a_target() -> None:
    for page in _PAGES:
        for number, target in _commands(page, r"make ([a-z]+)"):
            assert target in _TARGETS, f"{where(page, number)}: make {target}"


def test_every_target_says_what_it_is_for() -> None:
    for target in ("help", "demo", "test", "lint", "bench", "soak", "lock", "clean"):
        assert re.search(rf"^{target}:.*## \w", _MAKEFILE, re.MULTILINE), target


def test_every_command_of_the_documentation_is_in_the_list_of_commands() -> None:
    listed = set(re.findall(r"^\| `asyncdicom ([a-z-]+)", _text("commands.md"), re.MULTILINE))
    assert {"serve", "check-config", "echo", "find", "move", "get", "send", "probe", "simulate", "demo"} <= listed
    for page in _PAGES:
        for number, command in _commands(page, r"(?:\S*bin/)?asyncdicom ([a-z-]+)"):
            assert command in listed, f"{where(page, number)}: asyncdicom {command}"


def _tables() -> Iterator[type[BaseModel]]:
    for module in (config, inventory):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__name__.endswith("Table"):
                yield value


def test_every_key_of_the_configuration_is_explained() -> None:
    text = _text("configuration.md")
    missing = [
        f"{table.__name__}.{key}"
        for table in _tables()
        for key in table.model_fields
        if not re.search(rf"`(?:[^`]*[\W])?{re.escape(key)}(?:\W[^`]*)?`", text)
    ]
    assert not missing


def test_every_metric_is_explained_and_none_that_is_not_there(tmp_path: Path) -> None:
    ours = {name for name in exposed_names(full_metrics(tmp_path)) if name.startswith("asyncdicom_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    explained = set(re.findall(r"^\| `(asyncdicom_\w+)`", _text("metrics.md"), re.MULTILINE))
    assert explained == families


def test_every_reason_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", _text("commands.md"), re.MULTILINE)
    assert explained == [reason.value for reason in Reason]


def test_every_page_is_on_the_map() -> None:
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for _, link in _links(ROOT / "docs/index.md")}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md"} <= linked
