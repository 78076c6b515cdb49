"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from asyncdicom.modality import Engine

COMMON = Group("Common options", sort_key=9)
OUTPUT = Group("Output", sort_key=8)

# Yes or no, and no is the default: nothing to tell.
Flag = Annotated[bool, Parameter(show_default=False)]

Level = Literal["patient", "study", "series", "image"]
Keys = Annotated[
    tuple[str, ...],
    Parameter(
        name=("-k", "--key"),
        metavar="KEYWORD[=VALUE]",
        show_default=False,
        help="Attribute to match, such as PatientID=123 or StudyDate=20260101-; alone it is only asked for. Repeat it.",
    ),
]
KEYS: tuple[str, ...] = ()
Targets = Annotated[str, Parameter(name="TARGET", help="A name of the configuration, @group, @all, or AET@host:port.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a command finds its targets and asks them."""

    config: Annotated[
        Path | None,
        Parameter(
            group=COMMON,
            metavar="FILE",
            help="Configuration or CSV inventory. Default: asyncdicom.toml here, else $ASYNCDICOM_CONFIG.",
        ),
    ] = None
    engine: Annotated[
        Engine | None, Parameter(group=COMMON, metavar="ENGINE", help="What speaks DICOM. Default: native where it can.")
    ] = None
    deadline: Annotated[
        float | None,
        Parameter(group=COMMON, metavar="SECONDS", help="For the whole run, targets that wait for their turn included."),
    ] = None
    concurrency: Annotated[int | None, Parameter(group=COMMON, metavar="N", help="Associations at once. Default: 64.")] = None
    calling: Annotated[
        str | None,
        Parameter(group=COMMON, metavar="AET", help="Our AE title. Default: that of the configuration, or ASYNCDICOM."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Form:
    """In which form results are written."""

    json: Annotated[Flag, Parameter(group=OUTPUT, help="One JSON object a line (NDJSON).")] = False
    csv: Annotated[Flag, Parameter(group=OUTPUT, help="Comma-separated values with a header.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """What is to be retrieved."""

    key: Keys = KEYS
    from_: Annotated[
        str | None,
        Parameter(
            name="--from",
            metavar="FILE",
            allow_leading_hyphen=True,
            help="Matches of find --json to retrieve instead of keys; - is standard input.",
        ),
    ] = None
    level: Annotated[Level, Parameter(help="What is retrieved as a whole.")] = "study"
    model: Annotated[
        Literal["patient", "study"] | None,
        Parameter(help="Information model. Default: study, or patient for --level patient."),
    ] = None


ASKING = Asking()
FORM = Form()
RETRIEVAL = Retrieval()
