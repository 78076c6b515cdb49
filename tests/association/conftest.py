"""The contract of an association holds for every engine."""

from __future__ import annotations

import pytest

from asyncdicom.modality import Engine


@pytest.fixture(params=["native", "pynetdicom"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    engine: Engine = request.param
    return engine
