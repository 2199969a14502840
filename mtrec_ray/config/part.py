"""The base of all config parts, and the types of values that several of them have."""

import re
import zoneinfo
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: Any) -> Any:
    """`'90s'`, `'10m'`, `'1h'`, `'7d'`, `'2w'` or a number of seconds -> seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", value)
        if match is None:
            raise ValueError(f"'{value}' is not a duration; write e.g. 30s, 10m, 1h, 7d, or seconds")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=100 * 365 * _UNITS["d"])]
"""Seconds, of at most a hundred years, that times in microseconds can be moved by."""
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def is_time_zone(name: str) -> bool:
    """Whether it is an IANA name, as `Europe/Oslo`."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


class Part(BaseModel):
    """Base of every config part: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
