"""``arrivals`` of a modality: when it is expected to send."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from asyncdicom.errors import ConfigurationError
from asyncdicom.fleet.tables import Seconds, Table, mistake
from asyncdicom.modality import Arrivals, WeekHours


def _hours(value: str) -> str:
    try:
        WeekHours.parse(value)
    except ConfigurationError as error:
        raise mistake(error.remedy) from None
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class ArrivalsTable(Table):
    """What is expected; nothing when it is empty."""

    learn: bool = Field(default=False, description="true or false")
    within: Seconds | None = Field(default=None, description="a number of seconds above 0, such as 3600.0")
    hours: Annotated[tuple[Annotated[str, AfterValidator(_hours)], ...], BeforeValidator(_one_or_more), Field(strict=False)] = (
        Field(default=(), description='hours of the week such as "Mon-Fri 07:00-18:00", or an array of them')
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.learn and (self.within is not None or self.hours):
            raise mistake("learn finds out by itself what within and hours say: keep one of the two")
        if self.hours and self.within is None:
            raise mistake("add within: the seconds of these hours in which something has to come, such as 3600.0")
        return self

    def build(self, holidays: Sequence[date]) -> Arrivals | None:
        """As a modality takes it; None when nothing is expected.

        :param holidays: days that do not count
        """
        if not self.learn and self.within is None:
            return None
        return Arrivals(self.within, tuple(WeekHours.parse(hours) for hours in self.hours), frozenset(holidays))


def _written(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in ("learn", "off"):
        raise mistake('"learn", "off", or a table such as { within = 3600.0, hours = "Mon-Fri 07:00-18:00" }')
    return {"learn": value == "learn"}


OptionalArrivals = Annotated[ArrivalsTable | None, BeforeValidator(_written)]
Dates = Annotated[tuple[date, ...], Field(strict=False)]
