"""The windows of the week in which more copies are kept (serve.autoscale.schedule)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def least(schedule: Iterable[Mapping[str, Any]], at: float) -> int:
    """The most copies that a window open at `at` (seconds since 1970) wants; 0 outside of all.

    A window is open by what clocks on the wall show: where they are set forward over its start it opens with that, and
    an hour that comes twice is twice in it.
    """
    return max((window["min_replicas"] for window in schedule if _open(window, at)), default=0)


def _open(window: Mapping[str, Any], at: float) -> bool:
    here = datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(window["timezone"]))
    now, start, end = here.strftime("%H:%M"), window["start"], window["end"]
    today = _DAYS[here.weekday()] in window["days"]
    if start < end:
        return today and start <= now < end
    # It ends on the day after that on which it began.
    yesterday = _DAYS[(here.replace(tzinfo=None) - timedelta(days=1)).weekday()] in window["days"]
    return (today and now >= start) or (yesterday and now < end)
