"""A safe path from attributes.

What a peer sends becomes part of a file name only through :func:`encode`, which is injective: different values give
different names. Two instances can still meet at one path, because a layout need not contain the SOP Instance UID; the
names beside it (:func:`beside`) carry a ``~``, which no encoding and no layout gives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from asyncdicom.archive.keys import Keys
from asyncdicom.association.received import Received
from asyncdicom.errors import ConfigurationError

DEFAULT_LAYOUT = "{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm"
SUFFIX = ".dcm"

_FIELDS: dict[str, Callable[[Received, Keys], str]] = {
    # The UIDs of the instance are those of the C-STORE command: what the sender asks about by them later is what it sent.
    "SOPInstanceUID": lambda received, keys: received.sop_instance_uid,
    "SOPClassUID": lambda received, keys: received.sop_class_uid,
    "TransferSyntaxUID": lambda received, keys: received.transfer_syntax_uid,
    "StudyInstanceUID": lambda received, keys: keys.study_instance_uid,
    "SeriesInstanceUID": lambda received, keys: keys.series_instance_uid,
    "PatientID": lambda received, keys: keys.patient_id,
    "AccessionNumber": lambda received, keys: keys.accession_number,
    "StudyDate": lambda received, keys: keys.study_date,
    "Modality": lambda received, keys: keys.modality,
    "CallingAETitle": lambda received, keys: received.calling_ae_title,
    "CalledAETitle": lambda received, keys: received.called_ae_title,
}
FIELDS = tuple(_FIELDS)

_FIELD = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._-]*")
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ALLOWED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_CUT = re.compile(r"%[0-9A-F]?\Z")
_ABSENT = "_"
_MAX_COMPONENTS = 16
# Most file systems end a name at 255 bytes; the rest is for what is put beside.
_MAX_BYTES = 200
_HASH = 32

_Part = str | Callable[[Received, Keys], str]


class Layout:
    """Where in the archive an instance belongs.

    :param template: folders and a file name ending in ``.dcm``, with attributes in braces
    :raises ConfigurationError: when it is not one; the message names the part that is wrong
    """

    def __init__(self, template: str = DEFAULT_LAYOUT) -> None:
        self.template = template
        if not template.endswith(SUFFIX):
            raise self._wrong(template, f"end the layout in {SUFFIX}")
        components = template.removesuffix(SUFFIX).split("/")
        if len(components) > _MAX_COMPONENTS:
            raise self._wrong(template, f"use at most {_MAX_COMPONENTS} folders")
        self._components = [self._parse(component) for component in components]

    def _wrong(self, part: str, remedy: str) -> ConfigurationError:
        return ConfigurationError("archive.layout", part, remedy)

    def _parse(self, component: str) -> list[_Part]:
        parts: list[_Part] = []
        # With one group in the pattern, every second piece is the name of a field.
        for number, piece in enumerate(_FIELD.split(component)):
            if number % 2:
                if piece not in _FIELDS:
                    raise self._wrong(f"{{{piece}}}", f"a layout knows {', '.join(FIELDS)}")
                parts.append(_FIELDS[piece])
            elif not _LITERAL.fullmatch(piece):
                raise self._wrong(piece, "outside braces a layout has letters, digits, '.', '_' and '-'")
            elif piece:
                parts.append(piece)
        if not parts:
            raise self._wrong(self.template, "a layout is relative, and every folder and the file in it has a name")
        if isinstance(parts[0], str) and parts[0].startswith("."):
            raise self._wrong(component, "a name must not begin with a dot")
        return parts

    @property
    def depth(self) -> int:
        """How many folders a file lies in."""
        return len(self._components) - 1

    def path(self, received: Received, keys: Keys) -> str:
        """Return the path of an instance, relative to the archive, with ``/`` between folders."""
        return (
            "/".join(
                _capped("".join([part if isinstance(part, str) else encode(part(received, keys)) for part in component]))
                for component in self._components
            )
            + SUFFIX
        )

    def __repr__(self) -> str:
        return f"Layout({self.template!r})"


def encode(value: str) -> str:
    """Return a value as a part of a file name: letters, digits, ``.``, ``_``, ``-``, and everything else percent-encoded
    in UTF-8. A leading dot is encoded; an empty value is ``_``, and so that value itself is encoded."""
    if _SAFE.fullmatch(value) and value != _ABSENT:
        return value
    if not value:
        return _ABSENT
    encoded = "".join(chr(byte) if byte in _ALLOWED else f"%{byte:02X}" for byte in value.encode("utf-8", "surrogatepass"))
    return f"%{ord(encoded[0]):02X}{encoded[1:]}" if encoded[0] == "." or encoded == _ABSENT else encoded


def _capped(component: str) -> str:
    if len(component) <= _MAX_BYTES - len(SUFFIX):
        return component
    digest = hashlib.sha256(component.encode()).hexdigest()[:_HASH]
    # Not in the middle of an encoded byte.
    return f"{_CUT.sub('', component[: _MAX_BYTES - len(SUFFIX) - _HASH - 1])}~{digest}"


def beside(path: str, what: str) -> str:
    """Return the name beside a path for something that cannot have the path itself.

    :param what: what sets it apart: the SOP Instance UID that meets another one there, or the SHA-256 of other bytes
    """
    return f"{path.removesuffix(SUFFIX)}~{hashlib.sha256(what.encode('utf-8', 'surrogatepass')).hexdigest()[:_HASH]}{SUFFIX}"
