"""The promises of a fleet hold on every engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from asyncdicom import Fleet
from asyncdicom.modality import Engine


@pytest.fixture(params=["native", "pynetdicom"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    engine: Engine = request.param
    return engine


@pytest.fixture
def fleet_of(engine: Engine) -> Callable[..., Fleet]:
    """Makes a fleet on that engine."""
    return partial(Fleet, engine=engine)
