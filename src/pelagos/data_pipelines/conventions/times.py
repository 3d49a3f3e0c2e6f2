"""CF time coordinates: numbers "since" a moment, or moments themselves."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.errors import DatasetError

# Calendars of CF 1.11, section 4.4.1. Numbers "since" a moment count real units of time in each, so
# that the distance of two frames does not depend on which it is.
CALENDARS = (
    *("standard", "gregorian", "proleptic_gregorian", "julian", "utc", "tai", "none"),
    *("noleap", "365_day", "all_leap", "366_day", "360_day"),
)
# A unit of time in seconds. Months and years are no fixed length but in calendars that make them so.
SECONDS = {
    "nanosecond": 1e-9,
    "microsecond": 1e-6,
    "millisecond": 1e-3,
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
    "week": 604800.0,
}
_ALIASES = {
    **{"ns": "nanosecond", "us": "microsecond", "ms": "millisecond", "msec": "millisecond"},
    **{"s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day"},
}
_CALENDAR_ALIASES = {"gregorian": "standard", "365_day": "noleap", "366_day": "all_leap"}
_SINCE = re.compile(r"^\s*([A-Za-z]+)\s+since\s+(\S.*)$", re.IGNORECASE)
# 2000-01-01, 2000-1-1 06:00, 2000-01-01T06:00:00.5Z; zones other than UTC are not recognised.
_MOMENT = re.compile(
    r"(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T\s]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?"
    r"\s*(?:Z|UTC|GMT|\+?00:?00)?",
    re.IGNORECASE,
)
_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
_FIRST_GREGORIAN_YEAR = 1583  # before it the standard calendar is Julian


@dataclass(frozen=True)
class TimeAxis:
    """Times of the frames.

    Attributes:
        points: positions along time, float64, in `unit` from an origin.
        unit: of the positions: `hour`; None: not said.
        calendar: as the attribute says; None: not said.
        origin: the moment that positions count from, as the attribute says; None: not said.
        step: the distance of neighbours, where a reader measured it.
    """

    points: npt.NDArray[np.float64]
    unit: str | None = None
    calendar: str | None = None
    origin: str | None = None
    step: float = 1.0

    @property
    def described(self) -> dict[str, str]:
        """For a dataset's attributes: the unit of its frame interval, and the calendar."""
        described = {"time_unit": self.unit, "calendar": self.calendar}
        return {key: value for key, value in described.items() if value is not None}

    @property
    def cadence(self) -> str:
        """The distance of frames with its unit and reference, for messages.

        `6 hour (calendar noleap, since 2000-01-01)`.
        """
        calendar = f"calendar {self.calendar}" if self.calendar else "no calendar given"
        origin = f"since {self.origin}" if self.origin else "since no date"
        return f"{self.step:g} {self.unit or '(no unit given)'} ({calendar}, {origin})"

    @property
    def start(self) -> str:
        """The time of the first frame, for messages: `6 hour since 2000-01-01`."""
        origin = f" since {self.origin}" if self.origin else ""
        return f"{self.points[0]:g}{f' {self.unit}' if self.unit else ''}{origin}"

    @property
    def moments(self) -> npt.NDArray[np.float64] | None:
        """The frames in seconds from the year 1 of the calendar.

        None where unit, date or calendar do not determine them.
        """
        start = None if self.origin is None else _seconds(self.origin, self._calendar)
        if start is None or self.unit not in SECONDS:
            return None
        return start + self.points * SECONDS[self.unit]

    def steps_as(self, other: TimeAxis, tolerance: float) -> bool:
        """Whether step and calendar mean the same, 6 hours as 360 minutes; the origin may be another."""
        if (self.unit in SECONDS) != (other.unit in SECONDS):
            return False
        if self.unit in SECONDS and other.unit in SECONDS:
            mine, theirs = self.step * SECONDS[self.unit], other.step * SECONDS[other.unit]
        else:
            mine, theirs = self.step, other.step
        is_named_alike = self.unit in SECONDS or self.unit == other.unit
        is_close = abs(mine - theirs) <= tolerance * abs(theirs)
        return is_named_alike and is_close and self._calendar == other._calendar

    @property
    def _calendar(self) -> str | None:
        """The calendar by one name; CF's default where there is a date and no calendar."""
        name = self.calendar.lower() if self.calendar else "standard" if self.origin else None
        return _CALENDAR_ALIASES.get(name or "", name)


def time_axis(points: npt.NDArray[Any], attributes: Mapping[str, Any], where: str) -> TimeAxis:
    """The time coordinate with its unit.

    Raises:
        DatasetError: a calendar or unit that CF does not know, or months or years of calendars in
            which they have no fixed length.
    """
    if points.dtype.kind == "M":
        nanoseconds = points.astype("M8[ns]")
        if np.isnat(nanoseconds).any():
            raise DatasetError(f"{where} holds a missing time (NaT)")
        seconds = (nanoseconds - nanoseconds.reshape(-1)[0]).astype(np.int64) / 1e9
        return TimeAxis(np.asarray(seconds, np.float64), "second", "proleptic_gregorian")
    if points.dtype.kind == "m":
        return TimeAxis(points.astype("m8[ns]").astype(np.int64) / 1e9, "second")
    numbers = points.astype(np.float64)
    calendar = _word(attributes.get("calendar"))
    if calendar is not None and calendar.lower() not in CALENDARS:
        raise DatasetError(
            f"{where} has the calendar {calendar!r}; known calendars: {', '.join(CALENDARS)}"
        )
    units = _word(attributes.get("units"))
    since = _SINCE.match(units or "")
    word = (since.group(1) if since else (units or "")).strip().lower()
    unit = _unit(word)
    if since is None:
        return TimeAxis(numbers, unit or (units or None), calendar)
    if unit is None:
        if word in ("month", "months", "year", "years") and calendar == "360_day":
            days = 30 if word.startswith("month") else 360
            return TimeAxis(numbers * days, "day", calendar, since.group(2))
        raise DatasetError(
            f"{where} has units = {units!r}: {word} have no fixed length in the calendar "
            f"{calendar or 'standard'}. Write the times in days, or give the frame interval"
            if word in ("month", "months", "year", "years")
            else f"{where} has units = {units!r}; known units: {', '.join(SECONDS)} since a moment"
        )
    return TimeAxis(numbers, unit, calendar, since.group(2))


def _seconds(origin: str, calendar: str | None) -> float | None:
    """A date in seconds from the year 1 of a calendar; None if it is none, or not of a known one."""
    found = _MOMENT.fullmatch(origin.strip())
    if found is None:
        return None
    year, month, day, hour, minute = (int(g or 0) for g in found.groups()[:5])
    if not 1 <= month <= 12:
        return None
    if calendar in ("standard", "proleptic_gregorian", "utc", "tai"):
        if calendar == "standard" and year < _FIRST_GREGORIAN_YEAR:
            return None
        try:
            days = datetime.date(year, month, day).toordinal()
        except ValueError:
            return None
    elif calendar == "noleap":
        days = 365 * year + _DAYS_BEFORE_MONTH[month - 1] + day
    elif calendar == "360_day":
        days = 360 * year + 30 * (month - 1) + day
    else:
        return None
    return 86400.0 * days + 3600 * hour + 60 * minute + float(found.group(6) or 0)


def _unit(word: str) -> str | None:
    for candidate in (word, word.removesuffix("s")):
        name = _ALIASES.get(candidate, candidate)
        if name in SECONDS:
            return name
    return None


def _word(value: Any) -> str | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None
