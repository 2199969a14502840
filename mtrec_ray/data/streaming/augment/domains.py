"""Fewer of the rows of some domains, without a change of what is learned in the mean: so that a large one does not take
up the steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.data.streaming.augment.thinning import thinned
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

Array = np.ndarray[Any, np.dtype[Any]]


def sample_domains(rows: RequestRows, shares: Array, draws: Draws) -> RequestRows:
    """Keeps what was shown in domain d with probability `shares[d]` (float64 [D], in (0, 1]).

    Candidates that were shown together, and whose domain is one, stay or go together, so that lists stay whole.
    """
    uids = rows.uids[rows.request_of_candidate]
    return thinned(rows, shares[rows.values("domain")], draws.uniform("domains", uids, rows.seen))


def shares_by_domain(wanted: Mapping[str, float], domains: Sequence[str]) -> Array:
    """float64 [D] of the domains in the manifest's order: 1 for those that are not named."""
    return np.array([wanted.get(name, 1.0) for name in domains])


def check_domains(run: Run) -> None:
    """What needs no data. Raises `ConfigError` if domains are to be thinned and the log has no column of them."""
    if run.augment.domains and run.data.columns.domain is None:
        raise ConfigError(
            "augment.domains needs data.columns.domain, which is not set; name the log's column there, or leave it out."
        )


def check_known_domains(run: Run, manifest: Manifest) -> None:
    """Raises `ConfigError` if `augment.domains` names one that no train row is of."""
    known = manifest.domains[1:]
    for name in run.augment.domains:
        if name not in known:
            raise ConfigError(f"augment.domains: no train row is of domain '{name}'.{suggest(name, known)}")
