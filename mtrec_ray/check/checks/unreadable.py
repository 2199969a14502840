"""Rows that could not be read at all."""

from collections import Counter
from collections.abc import Iterator

from mtrec_ray.check.checks.times import is_untimely
from mtrec_ray.check.examined import Examined
from mtrec_ray.check.finding import CHECKS, MOST_PLACES, Finding, Place

_SOME = 0.001


@CHECKS.register("unreadable")
def unreadable(log: Examined) -> Iterator[Finding]:
    """Rows that cannot be read, and so are left out; those with impossible times are told by `times`."""
    reasons = Counter({reason: count for reason, count in log.read.reasons.items() if not is_untimely(reason)})
    bad = [row for row in log.read.bad.to_pylist() if not is_untimely(row["reason"])]
    share = reasons.total() / log.read.rows_read
    if share < _SOME:
        return
    yield Finding(
        "error" if share > log.run.data.max_bad_share else "warning",
        "unreadable",
        f"{reasons.total():,} of {log.read.rows_read:,} rows ({share:.1%}) cannot be read.",
        {reason: count for reason, count in reasons.most_common(5)},
        tuple(Place(row["file"], row["row"], f"{row['reason']}: {row['content'][:120]}") for row in bad[:MOST_PLACES]),
        "Correct the log or the config; `mtrec prepare` stops where their share exceeds data.max_bad_share.",
    )
