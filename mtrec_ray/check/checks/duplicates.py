"""Rows, requests and files that the log has more than once."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined, groups
from mtrec_ray.check.finding import CHECKS, MOST_PLACES, Finding, Place
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.requests.rows import Rows

_SOME, _MANY = 0.001, 0.01
"""Shares of all rows: of a warning, of an error."""
_COPIED = 0.5
"""A file whose rows another file has to this share was delivered twice."""


@CHECKS.register("duplicates")
def duplicates(log: Examined) -> Iterator[Finding]:
    """Rows or deliveries that the log has twice.

    A delivery repeated has the same request and item, perhaps at another time; without requests, the same user, item,
    time and type. Repeated rows count double in training, and put the same row on both sides of a split.
    """
    rows = log.by_user.rows
    same = copies(rows)
    again = _is_repeated(same)
    share = float(again.mean())
    if again.sum() < 3 or share < _SOME:
        return
    chosen = np.flatnonzero(np.isin(same, same[again]))
    chosen = chosen[np.argsort(same[chosen], kind="stable")]
    evidence: dict[str, int | float | str] = {"rows repeated": int(again.sum()), "share": round(share, 4)}
    copied = _files(log, rows, same)
    if copied:
        evidence["files delivered twice"] = "; ".join(copied[:3])
    yield Finding(
        "error" if share >= _MANY else "warning",
        "duplicates",
        f"{int(again.sum()):,} of {rows.num_rows:,} ({share:.1%}) rows repeat another"
        + (f", for {copied[0]}." if copied else "."),
        evidence,
        _places(log, rows, chosen),
        "Keep one row of each delivery when the log is written."
        if not copied
        else "Remove the file that was delivered twice.",
    )


def copies(rows: Rows) -> Array:
    """int64 [N]: rows that are deliveries of the same thing have the same number."""
    request = np.where(rows.request >= 0, rows.request, -1)
    time = np.where(rows.request >= 0, 0, rows.time)
    _, event = np.unique(rows.event.astype(str), return_inverse=True)
    if (rows.event != np.array(None)).any():  # one request may hold several events on one item
        time = rows.time
    return groups(rows.user, rows.item, request, time, event.ravel())


def repeated(rows: Rows) -> Array:
    """bool [N]: all but the first delivery."""
    return _is_repeated(copies(rows))


def _is_repeated(same: Array) -> Array:
    again = np.ones(len(same), dtype=bool)
    again[np.unique(same, return_index=True)[1]] = False
    return again


def _files(log: Examined, rows: Rows, same: Array) -> list[str]:
    """Sentences on pairs of files with mostly the same rows."""
    file = rows.row_id >> ROW_BITS
    order = np.lexsort((file, same))
    a, b = file[order][:-1], file[order][1:]
    both = (np.diff(same[order]) == 0) & (a != b)
    sizes = np.bincount(file)
    found = []
    pairs, counts = np.unique(np.stack([a[both], b[both]]), axis=1, return_counts=True)
    for (first, second), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if count >= _COPIED * min(sizes[first], sizes[second]):
            found.append(f"'{log.read.files[second].path}' repeats '{log.read.files[first].path}'")
    return found


def _places(log: Examined, rows: Rows, chosen: Array) -> tuple[Place, ...]:
    return tuple(
        Place(
            log.file(rows.row_id[i]),
            int(rows.row_id[i]) & ((1 << ROW_BITS) - 1),
            f"user {rows.users[rows.user[i]]}, item {rows.items[rows.item[i]]}, time {rows.time[i] // 1_000_000}",
        )
        for i in chosen[:MOST_PLACES].tolist()
    )
