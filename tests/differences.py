"""The engines held against each other, and the differences that are known: strict, so that one that is gone is taken off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

_SHOWN = 1_500


def agree(what: str, native: Any, bridge: Any) -> None:
    """Fail unless both engines came to the same; what is told is where they part, in place of a traceback."""
    while native != bridge:
        if isinstance(native, Mapping) and isinstance(bridge, Mapping) and native.keys() == bridge.keys():
            at: Any = next(key for key in native if native[key] != bridge[key])
        elif _is_list(native) and _is_list(bridge) and len(native) == len(bridge):
            at = next(index for index in range(len(native)) if native[index] != bridge[index])
        else:
            pytest.fail(f"{what}\nnative: {native!r:.{_SHOWN}}\nbridge: {bridge!r:.{_SHOWN}}", pytrace=False)
        what, native, bridge = f"{what}[{at!r}]", native[at], bridge[at]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def allow(what: str, found: Any, allowed: Collection[Any]) -> None:
    """Fail unless one engine does what it may."""
    if found not in allowed:
        pytest.fail(f"{what}: {found!r}, allowed are {allowed!r}", pytrace=False)


def differs(reason: str) -> pytest.MarkDecorator:
    """A difference that is known, with who is right."""
    return pytest.mark.xfail(strict=True, raises=pytest.fail.Exception, reason=reason)


def cases(found: Mapping[str, Any]) -> list[Any]:
    """The cases of a table as parameters of a test; one that comes with a reason is a known difference."""
    return [
        pytest.param(value[0], marks=differs(value[1]), id=name) if _is_known(value) else pytest.param(value, id=name)
        for name, value in found.items()
    ]


def _is_known(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)
