"""Tables of a TOML file, checked: what they share, and how a mistake in them is told.

A mistake says where (as the user writes it), what stands there (never a secret), and what to write instead. The last comes
from the description of the field, so a field cannot be without one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from asyncdicom.errors import ConfigurationError, ConfigurationErrors

_SECRET_KEY = re.compile(r"pass|pwd|secret|token|credential|user_?name|jwt|saml|kerberos|primary|secondary", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s]*):[^@\s]*(?=@)")
_LONGEST_VALUE = 80


class _Words(str):
    """Text that stands for a value and is shown without quotes: ``(missing)``, ``(hidden)``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


MISSING = _Words("(missing)")
HIDDEN = _Words("(hidden)")


def mistake(remedy: str) -> PydanticCustomError:
    """Return what a validator raises: ``remedy`` says what to write instead."""
    # By way of the context, because braces in the text itself would be taken for a template.
    return PydanticCustomError("mistake", "{remedy}", {"remedy": remedy})


def resolve_path(value: object, info: ValidationInfo) -> object:
    """Make a path of text: relative ones begin at the configuration file; empty text means none."""
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise mistake("a path has no NUL character")
    base: Path = (info.context or {}).get("base", Path())
    return base / value if value else None


def _existing_file(value: Path | None) -> Path | None:
    if value is None:
        return None
    if not value.is_file():
        raise mistake(f"there is no such file: {value}")
    if not os.access(value, os.R_OK):
        raise mistake(f"this process may not read {value}: change its owner or mode")
    return value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Strict mode wants tuples, and TOML has arrays.
Texts = Annotated[tuple[str, ...], Field(strict=False)]
OptionalPath = Annotated[Path | None, BeforeValidator(resolve_path)]
ExistingFile = Annotated[Path | None, BeforeValidator(resolve_path), AfterValidator(_existing_file)]


class Table(BaseModel):
    """A table of the configuration: unknown keys are mistakes, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


Tables = TypeVar("Tables", bound=Table)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    :raises ConfigurationErrors: when it cannot be read or is not TOML; with line and column
    """
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        remedy = f"{path}: there is no such file; name it with --config, or set ASYNCDICOM_CONFIG"
    except OSError as error:
        remedy = f"{path}: cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        remedy = f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8"
    except tomllib.TOMLDecodeError as error:
        text, _, where = str(error).rpartition(" (at ")
        remedy = f"{path}: {where.rstrip(')')}: {text[:1].lower()}{text[1:]}"
    raise ConfigurationErrors([ConfigurationError("", "", remedy)])


def validate(model: type[Tables], raw: Mapping[str, Any], base: Path) -> tuple[Tables | None, list[ConfigurationError]]:
    """Check tables, and return them with nothing, or nothing with every mistake.

    :param base: where relative paths begin
    """
    try:
        return model.model_validate(dict(raw), context={"base": base}), []
    except ValidationError as error:
        return None, [_translate(model, details["loc"], details) for details in error.errors(include_url=False)]


def unknown_key(path: str, value: object, known: Iterable[str]) -> ConfigurationError:
    """Say that a key is unknown, and which known one is nearest."""
    known = sorted(known)
    key = re.split(r"[.: ]+", path)[-1]
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    remedy = f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"
    return ConfigurationError(path, shown(path, value), remedy)


def shown(path: str, value: object) -> object:
    """Return what a message may show of a value: never a secret, never pages of text."""
    key = path.rpartition(".")[2]
    if isinstance(value, Mapping):
        return _Words("(a table)")
    if ("user_identity." in path or _SECRET_KEY.search(key)) and not re.search(r"_(file|env)(\[|$)|\.(kind|response)$", path):
        return HIDDEN
    if isinstance(value, bool):
        return _Words(str(value).lower())
    if isinstance(value, str):
        value = _URL_PASSWORD.sub(r"\1:(hidden)", value)
    if len(repr(value)) > _LONGEST_VALUE:
        return _Words(repr(value)[:_LONGEST_VALUE] + "...")
    return value


def path_of(location: Sequence[str | int]) -> str:
    """``("modality", 1, "name")`` as people write it: ``modality[1].name``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _translate(model: type[BaseModel], location: tuple[str | int, ...], details: Any) -> ConfigurationError:
    path = path_of(location)
    parent, field = _field_at(model, location)
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        return unknown_key(path, value, parent.model_fields)
    description = field.description if field is not None and field.description else details["msg"]
    if kind == "missing":
        return ConfigurationError(path, MISSING, f"add it: {description}")
    if kind == "mistake":
        return ConfigurationError(path, shown(path, value), details["msg"])
    return ConfigurationError(path, shown(path, value), f"write {description}")


def _field_at(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[type[BaseModel], FieldInfo | None]:
    """Return the table that a key stands in, and the key's field."""
    parent, field = model, None
    inside: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if inside is None:
            break
        parent, field = inside, inside.model_fields.get(part)
        inside = _table_in(field.annotation) if field is not None else None
    return parent, field


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for argument in get_args(annotation) if (table := _table_in(argument)) is not None), None)
