"""HTML as a function: every text is escaped, unless it is markup already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_VOID = frozenset(("meta", "link", "input", "br"))


class Markup(str):
    """Text that is markup already: it passes unescaped."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def text(value: object) -> Markup:
    """Escape a text for content and attributes; control and direction characters become visible."""
    return Markup(escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def element(tag: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """Make an element.

    :param tag: its name, from code alone
    :param children: texts, markup, or iterables of them; None is nothing
    :param attributes: ``class_`` is ``class``, other underscores are hyphens; None and False leave one out
    """
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{text(value)}"')
    parts.append(">")
    if tag not in _VOID:
        parts.append(joined(children))
        parts.append(f"</{tag}>")
    return Markup("".join(parts))


def joined(children: Iterable[Child]) -> Markup:
    """Put markup and texts one after the other."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(text(child))
        else:
            parts.append(joined(child))
    return Markup("".join(parts))
