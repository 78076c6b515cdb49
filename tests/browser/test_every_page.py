"""What holds for every page: nothing in the way of anybody, nothing from elsewhere, and little to load."""

from __future__ import annotations

import gzip
from importlib.resources import files

import pytest

from tests.peers.node import package

from .conftest import Site, Visit
from .screenshots import IMAGES, MOST
from .screenshots import PAGES as SHOWN

PAGES = (
    *("/", "/?failing=1", "/?q=nobody", "/modalities/up-1", "/modalities/down-rejected_permanent"),
    *("/modalities/not%20asked", "/modalities/quite%20alone", "/storage"),
)

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.blocking]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_axe_finds_nothing_in_the_way_of_anybody(site: Site, visit: Visit, scheme: str, width: int) -> None:
    axe = (package("axe-core") / "axe.min.js").read_text()
    page = visit(site.address, color_scheme=scheme, viewport={"width": width, "height": 800})
    found = []
    for path in PAGES:
        page.goto(site.address + path)
        # Not by a script element: the policy of the page refuses that, as it should.
        page.evaluate(axe)
        violations = page.evaluate("axe.run().then(({ violations }) => violations)")
        found += [(path, rule["id"], node["target"], node["failureSummary"]) for rule in violations for node in rule["nodes"]]
    assert found == []


@pytest.mark.parametrize("path", PAGES)
def test_no_page_is_wider_than_a_telephone(site: Site, visit: Visit, path: str) -> None:
    page = visit(site.address + path, viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_policy_refuses_what_is_inline(site: Site, visit: Visit) -> None:
    page = visit(site.address, ignore="Content Security Policy")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))")
    assert page.evaluate("window.ran") is None


def test_pictures_of_the_documentation_are_small() -> None:
    pictures = sorted(IMAGES.glob("*.png"))
    assert {picture.stem for picture in pictures} == {name + suffix for name in SHOWN for suffix in ("", "-dark")}
    assert not [picture.name for picture in pictures if picture.stat().st_size > MOST]


def test_style_and_script_are_small() -> None:
    for name, most in (("fleet.css", 4_500), ("fleet.js", 4_700), ("icon.svg", 300)):
        content = files("asyncdicom.web").joinpath("static", name).read_bytes()
        assert len(gzip.compress(content, 9)) < most
