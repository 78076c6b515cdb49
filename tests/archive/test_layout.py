"""A path from attributes: encoded, capped, different for different values, and never outside."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncdicom.archive.keys import Keys
from asyncdicom.archive.layout import DEFAULT_LAYOUT, FIELDS, Layout, beside, encode
from asyncdicom.association.received import Received
from asyncdicom.errors import ConfigurationError

# Everything that a command set or a dataset could hold, and then some.
TEXT = st.text(st.characters(codec=None), max_size=300)
NAME = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})*")


def _received(uid: str, calling: str = "CT1") -> Received:
    return Received(b"", "1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1", calling)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("1.2.840.10008", "1.2.840.10008"),
        ("", "_"),
        ("_", "%5F"),
        ("__", "__"),
        (".", "%2E"),
        ("..", "%2E."),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("/etc", "%2Fetc"),
        (".hidden", "%2Ehidden"),
        ("a\0b\r\nc", "a%00b%0D%0Ac"),
        ("M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller", "M%C3%BCller"),
        ("100%", "100%25"),
        ("a~b", "a%7Eb"),
        ("a b", "a%20b"),
    ],
)
def test_what_is_no_letter_digit_dot_dash_or_underscore_is_percent_encoded(value: str, encoded: str) -> None:
    assert encode(value) == encoded


@given(TEXT, TEXT)
@example("_", "")
@example("..", "%2E.")
def test_different_values_have_different_encodings(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@given(TEXT, TEXT, TEXT)
@example("..", ".", "/")
@example("A" * 300, "\u1234" * 300, "\ud800")
def test_every_path_lies_inside_and_every_name_is_short_and_harmless(uid: str, study: str, patient: str) -> None:
    layout = Layout("{PatientID}/x-{StudyInstanceUID}.{CallingAETitle}/{SOPInstanceUID}.dcm")
    path = layout.path(_received(uid, patient), Keys("1", study, "", patient))
    for candidate in (path, beside(path, uid)):
        names = PurePosixPath(candidate).parts
        assert len(names) == 3
        assert candidate == "/".join(names)
        for name in names:
            assert NAME.fullmatch(name)
            assert len(name.encode()) <= 240
            assert not name.startswith(".")
    assert path.endswith(".dcm")
    assert all(len(name) <= 200 for name in PurePosixPath(path).parts)


@given(st.lists(TEXT, min_size=2, max_size=8, unique=True))
@example(["A" * 300, "A" * 301])
@example(["A" * 196, "A" * 197])
def test_two_sop_instance_uids_never_have_one_path(uids: list[str]) -> None:
    layout = Layout()
    keys = Keys("1", "1.2", "1.3")
    paths = [layout.path(_received(uid), keys) for uid in uids]
    assert len(set(paths)) == len(uids)
    # Nor can one be crafted that has the name beside another.
    assert not set(paths) & {beside(path, uid) for path, uid in zip(paths, uids, strict=True)}


@given(TEXT)
def test_a_capped_name_cannot_be_had_by_its_own_spelling(uid: str) -> None:
    layout = Layout("{SOPInstanceUID}.dcm")
    long = layout.path(_received("B" * 250 + uid), Keys("1"))
    assert layout.path(_received(long.removesuffix(".dcm")), Keys("1")) != long


def test_absent_attributes_have_a_name_of_their_own() -> None:
    assert Layout().path(_received("1.2.3"), Keys("1.2.3")) == "_/_/1.2.3.dcm"


def test_the_uid_in_the_path_is_that_of_the_request() -> None:
    assert Layout("{SOPInstanceUID}.dcm").path(_received("1.2.3"), Keys("9.9.9")) == "1.2.3.dcm"


def test_every_field_can_be_used() -> None:
    layout = Layout("/".join(f"{{{name}}}" for name in FIELDS) + ".dcm")
    assert len(PurePosixPath(layout.path(_received("1.2"), Keys("1.2"))).parts) == len(FIELDS)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{SOPInstanceUID}", "end the layout in .dcm"),
        ("{PatientName}/{SOPInstanceUID}.dcm", "{PatientName}"),
        ("{SOPInstanceUID!r}.dcm", "{SOPInstanceUID!r}"),
        ("{}.dcm", "{}"),
        ("{SOPInstanceUID.dcm", "outside braces"),
        ("/{SOPInstanceUID}.dcm", "relative"),
        ("a//{SOPInstanceUID}.dcm", "relative"),
        (".dcm", "relative"),
        ("../{SOPInstanceUID}.dcm", "must not begin with a dot"),
        (".incoming/{SOPInstanceUID}.dcm", "must not begin with a dot"),
        ("a b/{SOPInstanceUID}.dcm", "outside braces"),
        ("a\n/{SOPInstanceUID}.dcm", "outside braces"),
        ("a/" * 16 + "{SOPInstanceUID}.dcm", "at most 16"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(template: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)) as caught:
        Layout(template)
    assert caught.value.path == "archive.layout"


def test_the_default_is_a_folder_for_each_study_and_series() -> None:
    keys = Keys("1.2.3", "1.2", "1.2.1")
    assert Layout(DEFAULT_LAYOUT).path(_received("1.2.3"), keys) == "1.2/1.2.1/1.2.3.dcm"
