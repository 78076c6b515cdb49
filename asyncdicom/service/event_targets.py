"""``[[events.target]]``: what goes together in it, what an argument may ask of an event, and what signs what is sent.

It looks at the tables as they were read; a value of the wrong kind is known by then, and passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asyncdicom.errors import ConfigurationError
from asyncdicom.events.kinds import FIELDS, placeholders
from asyncdicom.events.signing import key_of
from asyncdicom.fleet.tables import MISSING, shown

_NEEDED = {"command": "run", "webhook": "url"}
# A name, with the letters of any language, or an address.
_HOST = re.compile(r"(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*\.?|[0-9a-fA-F:.]+")
_USELESS = {"command": ("url", "subject", "secret_file"), "webhook": ("run", "subject")}


def mistakes_in(targets: Sequence[Mapping[str, Any]]) -> list[ConfigurationError]:
    """Every mistake between the keys of the targets of events."""
    errors: list[ConfigurationError] = []
    for index, target in enumerate(targets):
        path, kind = f"events.target[{index}]", target.get("kind")
        if kind == "nats":
            errors.append(ConfigurationError(f"{path}.kind", kind, 'this version has no NATS: write "webhook" or "command"'))
        if kind not in _NEEDED:
            continue
        if not target.get(_NEEDED[kind]):
            errors.append(ConfigurationError(f"{path}.{_NEEDED[kind]}", MISSING, f'the kind "{kind}" needs it'))
        for key in _USELESS[kind]:
            if target.get(key):
                remedy = f'the kind "{kind}" does not use it: remove it'
                errors.append(ConfigurationError(f"{path}.{key}", shown(key, target[key]), remedy))
        errors += _command(path, target) if kind == "command" else _webhook(path, target)
    return errors


def read_keys(targets: Sequence[Mapping[str, Any]], base: Path) -> tuple[tuple[bytes | None, ...], list[ConfigurationError]]:
    """What signs what is sent to each target, and what is wrong with the files that hold it.

    :param base: where relative paths begin
    """
    keys: list[bytes | None] = []
    errors = []
    for index, target in enumerate(targets):
        written, key = target.get("secret_file"), None
        if isinstance(written, str) and written and "\0" not in written and (base / written).is_file():
            path = f"events.target[{index}].secret_file"
            try:
                key = key_of((base / written).read_bytes())
            except OSError as error:
                errors.append(ConfigurationError(path, written, f"cannot be read: {error.strerror}"))
            except ValueError as error:
                errors.append(ConfigurationError(path, written, str(error)))
        keys.append(key)
    return tuple(keys), errors


def _webhook(path: str, target: Mapping[str, Any]) -> list[ConfigurationError]:
    written = target.get("url")
    if not isinstance(written, str) or not written:
        return []
    remedy = 'write an address such as "https://pipeline.example/hook"'
    try:
        url = urlsplit(written)
        usable = url.scheme in ("http", "https") and url.port != 0 and bool(_HOST.fullmatch(url.hostname or ""))
        usable = usable and written.isprintable() and " " not in written
    except ValueError:
        usable = False
    else:
        if url.username is not None:
            usable, remedy = False, "leave out user and password: secret_file signs what is sent"
    return [] if usable else [ConfigurationError(f"{path}.url", shown("url", written), remedy)]


def _command(path: str, target: Mapping[str, Any]) -> list[ConfigurationError]:
    run, on = target.get("run"), target.get("on", ["study.complete"])
    if not isinstance(run, list) or not isinstance(on, list) or not all(isinstance(each, str) for each in (*run, *on)):
        return []
    errors = []
    if run and not run[0].strip():
        errors.append(ConfigurationError(f"{path}.run[0]", run[0], "write the name or path of a program"))
    for position, argument in enumerate(run):
        if "\0" in argument:
            errors.append(ConfigurationError(f"{path}.run[{position}]", argument, "an argument has no NUL character"))
    for position, word in placeholders(run):
        where = f"{path}.run[{position}]"
        lacking = [kind for kind in on if kind in FIELDS and word not in FIELDS[kind]]
        if position == 0:
            errors.append(ConfigurationError(where, run[0], "no event decides which program runs: name it"))
        elif lacking:
            remedy = f"{lacking[0]} has no {word}; it has {', '.join(FIELDS[lacking[0]])}"
            errors.append(ConfigurationError(where, run[position], remedy))
    return errors
