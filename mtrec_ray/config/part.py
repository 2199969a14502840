"""The base of all config parts, and the types of values that several of them have."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""What a task without labels cannot have."""


def parse_duration(value: Any) -> Any:
    """`'90s'`, `'10m'`, `'1h'`, `'7d'`, `'2w'` or a number of seconds -> seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", value)
        if match is None:
            raise ValueError(f"'{value}' is not a duration; write e.g. 30s, 10m, 1h, 7d, or seconds")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of every config part: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
