"""Time zones of users: which names are known, and what their clocks show."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import is_time_zone

Array = np.ndarray[Any, np.dtype[Any]]


def unknown_zones(names: pa.Array) -> Array:
    """bool [rows]: cells (string, null = empty) that are no IANA names."""
    encoded = names.dictionary_encode()
    strange = np.array([not is_time_zone(name) for name in encoded.dictionary.to_pylist()], dtype=bool)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.append(strange, False)[codes]


def on_clocks(micros: Array, zones: Array) -> Array:
    """int64 [N]: times (microseconds since 1970 UTC) as the clocks of their zones (object [N]) show them, as
    microseconds since their own 1970. Summer time is that of the zone at the time, as far as Arrow knows it: to 2037.
    """
    shown = np.zeros(len(micros), dtype=np.int64)
    names, which = np.unique(zones.astype(str), return_inverse=True)
    for place, name in enumerate(names.tolist()):
        mine = which.ravel() == place
        stamps = pa.array(micros[mine]).cast(pa.timestamp("us", name))
        shown[mine] = pc.local_timestamp(stamps).cast(pa.int64()).to_numpy()
    return shown
