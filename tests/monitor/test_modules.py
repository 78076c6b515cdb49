"""Probe modules: their queries on a given day, and what they refuse."""

from __future__ import annotations

from datetime import date

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.monitor.modules import BUILT_IN, ProbeModule, module_named, modules_with, sop_class_of

DAY = date(2026, 3, 2)


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("today", "20260302"),
        ("today-2", "20260228"),
        ("today+1", "20260303"),
        ("today-7-", "20260223-"),
        ("-today", "-20260302"),
        ("today-7-today", "20260223-20260302"),
        ("20260101-today-1", "20260101-20260301"),
        ("today-20260401", "20260302-20260401"),
        ("20260101", "20260101"),
        ("", ""),
    ],
)
def test_dates_are_relative_to_the_day_of_the_probe(written: str, asked: str) -> None:
    module = ProbeModule("week", "find", keys=(("StudyDate", written),))
    assert module.query(DAY).keys == {"StudyDate": asked}


def test_what_is_no_date_stays_as_it_is() -> None:
    assert ProbeModule("p", "find", keys=(("PatientID", "today-7"),)).query(DAY).keys == {"PatientID": "today-7"}


@pytest.mark.parametrize("value", ["yesterday", "today-", "today--", "today-12345", "2026-01-01", "today-7d", "today\n"])
def test_a_date_that_is_none_is_refused(value: str) -> None:
    if value == "today-":
        # From today on.
        assert ProbeModule("p", "find", keys=(("StudyDate", value),)).query(DAY).keys == {"StudyDate": "20260302-"}
        return
    with pytest.raises(ConfigurationError, match=r"keys\.StudyDate"):
        ProbeModule("p", "find", keys=(("StudyDate", value),))


def test_the_keys_of_a_worklist_reach_the_scheduled_step() -> None:
    keys = (("ScheduledStationAETitle", "CT1"), ("ScheduledProcedureStepStartDate", "today"))
    identifier = ProbeModule("ris", "worklist", keys=keys).query(DAY).identifier
    step = identifier.ScheduledProcedureStepSequence[0]
    assert (step.ScheduledStationAETitle, step.ScheduledProcedureStepStartDate) == ("CT1", "20260302")


def test_the_level_of_patients_is_asked_of_the_patient_root() -> None:
    assert ProbeModule("p", "find", level="patient").query(DAY).model == "patient"


def test_four_modules_are_always_there_and_one_may_be_replaced() -> None:
    own = ProbeModule("find", "find", min_matches=3)
    modules = modules_with([own, ProbeModule("week", "find")])
    assert list(modules) == ["echo", "find", "worklist", "store", "week"]
    assert modules["find"] is own
    assert not own.is_built_in
    assert all(module.is_built_in for module in BUILT_IN.values())


def test_an_unknown_module_names_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match="one of echo, find, worklist, store, week"):
        module_named(modules_with([ProbeModule("week", "find")]), "weak")


@pytest.mark.parametrize("name", ["", "a b", "a/b", 'a"b', "ä", "a\n", "x" * 65, "a&b"])
def test_names_are_of_safe_characters(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64 letters"):
        ProbeModule(name, "echo")


def test_a_sop_class_is_written_by_uid_or_keyword() -> None:
    assert sop_class_of("CTImageStorage") == sop_class_of("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"
    assert sop_class_of("1.2.3.4.5") == "1.2.3.4.5"
    for wrong in ("", "CT", "ImplicitVRLittleEndian", "1..2", "1.02", "1." * 40):
        with pytest.raises(ConfigurationError):
            sop_class_of(wrong)
