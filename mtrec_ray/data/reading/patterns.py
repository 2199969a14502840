"""Numbers inside text cells by regular expression, as the year in `Toy Story (1995)`."""

import re

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import ConfigError


def extract_numbers(texts: pa.Array, pattern: str, where: str) -> np.ndarray:
    """float64 [rows]: the first group of `pattern` where it is found in the cell, else NaN.

    Raises:
        ConfigError: no regular expression, one without a group, or a group that found something else than a number.
    """
    try:
        search = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: '{pattern}' is not a regular expression ({error}).") from None
    if not search.groups:
        raise ConfigError(f"{where}: '{pattern}' has no group; put the number in brackets, as '\\((\\d{{4}})\\)'.")
    found = [search.search(text) if text is not None else None for text in texts.to_pylist()]
    try:
        return np.array([float("nan") if match is None or not match[1] else float(match[1]) for match in found])
    except ValueError as error:
        raise ConfigError(f"{where}: the first group of '{pattern}' is not a number everywhere ({error}).") from None
