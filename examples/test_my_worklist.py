"""Simulated modalities in your own tests: no network, no mocks, no second process.

    pytest examples/test_my_worklist.py

anyio's pytest plugin, which comes with asyncdicom, runs tests that are marked with ``anyio``.
"""

from __future__ import annotations

import pytest

from asyncdicom import Modality, OperationError, Query, associate
from asyncdicom.testing import Fault, SimulatedModality

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def patients_of_today(ris: Modality) -> list[str]:
    """What would be under test: your own code."""
    query = Query(model="worklist", keys={"PatientName": "", "Modality": "CT"})
    async with associate(ris) as association:
        return [str(match.dataset.PatientName) async for match in association.find(query)]


async def test_the_names_of_the_worklist_are_read() -> None:
    async with SimulatedModality(matches=[{"PatientName": "Doe^Jane"}, {"PatientName": "Roe^John"}]) as ris:
        assert await patients_of_today(ris.modality()) == ["Doe^Jane", "Roe^John"]  # noqa: S101
        assert ris.queries[0].ScheduledProcedureStepSequence[0].Modality == "CT"  # noqa: S101


@pytest.mark.parametrize("fault", [Fault.REFUSING, Fault.ABORTING, Fault.FAILURE_STATUS, Fault.GARBAGE])
async def test_a_broken_worklist_is_an_error_and_not_an_empty_day(fault: Fault) -> None:
    async with SimulatedModality(fault) as ris:
        with pytest.raises(OperationError):
            await patients_of_today(ris.modality())
