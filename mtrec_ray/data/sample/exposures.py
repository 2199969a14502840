"""Rows of a log as they lie in memory: what the log shows of them, and apart from it the truth."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from mtrec_ray.data.sample.population import Array


@dataclass(frozen=True)
class Exposures:
    """N shown items, ordered by time, request and position: all that the log says of them."""

    user: Array
    item: Array
    time: Array
    """int [N] seconds since 1970"""
    session: Array
    request: Array
    position: Array
    domain: Array
    random: Array
    """bool [N]: drawn uniformly"""
    propensity: Array
    seed: Array
    """int [N] item on whose page it was shown, -1 = none"""
    age: Array
    """float [N] days since the item appeared"""
    labels: dict[str, Array]
    """By stage, float [N]: 0, 1, NaN = not observed"""
    known: dict[str, Array]
    """By stage, int [N]: when the label, whatever it is, is known"""
    dwell: Array
    """float [N] seconds, NaN = none"""

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(**_joined([{f.name: getattr(part, f.name) for f in fields(cls)} for part in parts]))


@dataclass(frozen=True)
class Truth:
    """What the log does not say of its rows."""

    probability: dict[str, Array]
    """By stage, float [N]: of a label of 1, when the row was shown"""
    bot: Array
    """bool [N]"""

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(**_joined([{f.name: getattr(part, f.name) for f in fields(cls)} for part in parts]))


def _joined(parts: list[dict]) -> dict:
    """Arrays, and dictionaries of arrays, one after the other."""
    whole = {}
    for name, first in parts[0].items():
        pieces = [part[name] for part in parts]
        whole[name] = _joined(pieces) if isinstance(first, dict) else np.concatenate(pieces)
    return whole
