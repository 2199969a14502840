"""Random numbers that are functions of names: as the masks of `model.dropout`, for data."""

from typing import Any

import numpy as np

from mtrec_ray.data.streaming.order import mix
from mtrec_ray.model.dropout import DropoutKey

Array = np.ndarray[Any, np.dtype[Any]]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The increment of splitmix64"""


class Draws:
    """The draws of one optimizer step, counted over epochs."""

    def __init__(self, seed: int, step: int) -> None:
        self._key = DropoutKey(seed, step)

    def uniform(self, what: str, uids: Array, places: Array | None = None) -> Array:
        """float64 [N] in [0, 1): one number for each uid, or for each uid and place, called `what`.

        A uid names a splitmix64 generator (Steele, Lea, Flood 2014), together with a salt from the step and `what`; a
        place is the number of one of its outputs.
        """
        with np.errstate(over="ignore"):
            state = mix(uids.astype(np.uint64) ^ np.uint64(self._key.salt(f"augment.{what}")))
            if places is not None:
                state = mix(state + (places.astype(np.uint64) + np.uint64(1)) * _GAMMA)
        return (state >> np.uint64(11)) * 2.0**-53
