"""The kinds of events, what each of them tells, and how an argument asks for it. Cheap to import: the configuration does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType

# What each kind tells: DICOM's keywords for DICOM's attributes, and names in small letters for what is ours.
FIELDS = MappingProxyType(
    {
        "instance.stored": (
            "SOPInstanceUID",
            "SOPClassUID",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "Modality",
            "TransferSyntaxUID",
            "path",
            "size",
            "sha256",
            "calling_ae_title",
            "received_at",
            "duplicate",
        ),
        "study.complete": ("StudyInstanceUID", "instances", "size", "first_received", "last_received"),
        "modality.down": ("modality", "ae_title", "host", "port", "reason", "since"),
        "modality.up": ("modality", "ae_title", "host", "port", "reason", "since"),
        "modality.quiet": ("modality", "ae_title", "last_received", "expected_by"),
        "modality.heard": ("modality", "ae_title", "last_received", "expected_by"),
    }
)
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(run: Sequence[str]) -> list[tuple[int, str]]:
    """The attributes that an argument vector asks for as ``{Keyword}``, each with the position of its argument."""
    return [(position, word) for position, argument in enumerate(run) for word in PLACEHOLDER.findall(argument)]
