"""What every page has around it: head, bar and foot."""

from __future__ import annotations

from dataclasses import dataclass

from asyncdicom.outcome import OPERATIONS
from asyncdicom.web import words
from asyncdicom.web.markup import Child, Markup, element

_PAGES = (("/", "Fleet"), ("/storage", "Storage"))
# What the script makes sentences of: samples carry positions in these lists, and answers carry reasons.
_VOCABULARY = {
    "data-operations": " ".join(f"C-{operation.upper()}" for operation in OPERATIONS),
    "data-reasons": "|".join(f"{reason.value}={said}" for reason, said in words.REASONS.items()),
}


@dataclass(frozen=True, slots=True)
class Shell:
    """The frame of every page.

    :ivar title: our AE title
    :ivar version: of asyncdicom
    :ivar assets: the address of each static file by its name
    """

    title: str
    version: str
    assets: dict[str, str]

    def page(self, title: str, *content: Child, here: str = "") -> str:
        """A whole document.

        :param here: the address of the page among those of the bar
        """
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{title} · asyncdicom"),
            element("link", rel="icon", type="image/svg+xml", href=self.assets["icon.svg"]),
            element("link", rel="stylesheet", href=self.assets["fleet.css"]),
            element("noscript", element("meta", http_equiv="refresh", content="15")),
            element("script", src=self.assets["fleet.js"], defer=True),
        )
        places = [
            element("a", name, href=path, aria_current="page" if path == here else None, class_="place")
            for path, name in _PAGES
        ]
        bar = element(
            "header",
            element("a", "Skip to the content", href="#main", class_="skip"),
            element("a", element("span", class_="mark", aria_hidden="true"), "asyncdicom", href="/", class_="brand"),
            element("span", self.title, class_="own mono", title="our AE title"),
            element("nav", places, aria_label="Pages of the service"),
            # The time of every update is shown and not announced; what goes wrong is announced.
            element("span", "", id="freshness", class_="freshness"),
            element("span", "", id="notice", class_="notice", role="status"),
            class_="bar",
        )
        tip = element("div", "", id="tip", role="status", class_="tip", hidden=True, **_VOCABULARY)
        foot = element("footer", f"asyncdicom {self.version} · ", element("a", "metrics", href="/metrics"))
        main = element("main", *content, id="main", tabindex=-1)
        return "<!doctype html>" + element("html", head, element("body", bar, main, foot, tip), lang="en")


def live(title: str, *content: Child, **attributes: str) -> Markup:
    """What of a page changes by itself.

    :param title: of the document from then on
    """
    return element("div", content, id="live", data_title=f"{title} · asyncdicom", **attributes)
