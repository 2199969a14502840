"""Test rows in the middle of what train has seen."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Examined
from mtrec_ray.check.finding import CHECKS, Finding

_SOME, _MANY = 0.05, 0.5
"""Shares of the test rows: of a warning; and from where on figures are mostly about the rest of a known session."""


@CHECKS.register("sessions")
def sessions(log: Examined) -> Iterator[Finding]:
    """The share of test rows within a session of train rows of the same user.

    A session ends with a pause of 30 minutes. In service a model is older than that: such rows are easier than what
    it will meet.
    """
    view = log.by_user
    seen = np.bincount(view.session, log.train) > 0
    bad = log.test & seen[view.session]
    share = float(bad.sum()) / max(1, int(log.test.sum()))
    if share >= _SOME:
        yield Finding(
            "error" if share >= _MANY else "warning",
            "sessions",
            f"{int(bad.sum()):,} of {int(log.test.sum()):,} ({share:.1%}) test rows lie in a session that train has "
            "rows of.",
            {"share": round(share, 4), "rows": int(bad.sum()), "sessions": len(np.unique(view.session[bad]))},
            log.places(view, np.flatnonzero(bad)),
            "Split by time (split.by: time), which leaves the validation period between train and test; or report "
            "figures with history.lag of an hour and of a day beside these.",
        )
