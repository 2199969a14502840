"""Times that cannot be right: another unit, another zone, the future."""

import time
from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.checks.feedback_times import first_feedback
from mtrec_ray.check.examined import Array, Examined, groups
from mtrec_ray.check.finding import CHECKS, MOST_PLACES, Finding, Place
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.requests.rows import NEVER

_DAY, _HOUR = 86_400_000_000, 3_600_000_000
_1990 = 631_152_000_000_000
_YEAR = 365 * _DAY
_FAR = 5
"""A gap so many times as long as what the most rows span."""
_FEW = 0.05
_SHIFTED, _FITS = 0.3, 1 / 3
"""Total variation between the hours of a file and of the others, as they are; and what part of it a shift leaves."""
_LEAST_USERS, _LEAST_HOURS = 100, 300
_LEAST_DATED, _PAST_THE_HOUR = 30, 600.0


@CHECKS.register("times")
def times(log: Examined) -> Iterator[Finding]:
    """Times in another unit or zone, in the future, or long before the others."""
    yield from _other_unit(log)
    yield from _impossible(log)
    yield from _apart(log)
    yield from _other_zone(log)
    yield from _late_by_hours(log)


def is_untimely(reason: str) -> bool:
    """Whether a row is in quarantine since its time, or that of its feedback, would lie outside 1971 to 2099."""
    return "before 1971 or after 2099" in reason


def _other_unit(log: Examined) -> Iterator[Finding]:
    count = sum(n for reason, n in log.read.reasons.items() if is_untimely(reason))
    if count:
        share = count / log.read.rows_read
        bad = [row for row in log.read.bad.to_pylist() if is_untimely(row["reason"])]
        yield Finding(
            "error" if share >= 0.01 else "warning",
            "times",
            f"{count:,} rows have times that lie outside 1971 to 2099 in unit '{log.run.data.time_unit}': they "
            "are in another unit, or 0 for none. They are left out.",
            {"rows": count, "share": round(share, 5)},
            tuple(
                Place(row["file"], row["row"], f"{row['reason']}: {row['content'][:120]}") for row in bad[:MOST_PLACES]
            ),
            "Write all times in one unit; a missing time is an empty cell.",
        )


def _impossible(log: Examined) -> Iterator[Finding]:
    moments, now = log.by_user.rows.time, time.time_ns() // 1000
    for bad, what in ((moments > now + _DAY, "in the future"), (moments < _1990, "before 1990")):
        if bad.any():
            yield Finding(
                "error",
                "times",
                f"{int(bad.sum()):,} rows have times {what}.",
                {"rows": int(bad.sum()), "first": _date(moments[bad].min()), "last": _date(moments[bad].max())},
                _places(log, np.flatnonzero(bad)),
                "Correct the clock or the unit that wrote them: they decide what lies in train and in test.",
            )


def _apart(log: Examined) -> Iterator[Finding]:
    """A few rows far from all others: a default date, a clock that was never set."""
    moments = log.by_user.rows.time
    ordered = np.sort(moments)
    gaps = np.diff(ordered)
    if not len(gaps):
        return
    place = int(np.argmax(gaps)) + 1
    before = place <= len(ordered) // 2
    few = place if before else len(ordered) - place
    bulk = ordered[place:] if before else ordered[:place]
    if few > _FEW * len(ordered) or gaps[place - 1] < max(_YEAR, _FAR * (bulk[-1] - bulk[0])):
        return
    bad = moments < bulk[0] if before else moments > bulk[-1]
    yield Finding(
        "error",
        "times",
        f"{few:,} rows lie {gaps[place - 1] / _YEAR:.1f} years {'before' if before else 'after'} all others.",
        {
            "rows": few,
            "the others from": _date(bulk[0]),
            "to": _date(bulk[-1]),
            "these from": _date(moments[bad].min()),
        },
        _places(log, np.flatnonzero(bad)),
        "A default date or a wrong clock: leave these rows out, or correct them.",
    )


def _other_zone(log: Examined) -> Iterator[Finding]:
    """Files, or surfaces, whose day is that of the others some hours later. Each user counts once an hour."""
    rows = log.by_user.rows
    parts = [("file", rows.row_id >> ROW_BITS, [file.path for file in log.read.files])]
    if log.run.data.columns.domain is not None:
        domains, domain = np.unique(rows.domain.astype(str), return_inverse=True)
        parts.append(("surface", domain.ravel(), domains.tolist()))
    for what, part, names in parts:
        _, first = np.unique(groups(part, rows.user, rows.time // _HOUR), return_index=True)
        hour, of, user = rows.time[first] // _HOUR % 24, part[first], rows.user[first]
        for p in np.unique(of).tolist() if len(np.unique(of)) > 1 else ():
            mine = of == p
            if min(len(np.unique(user[mine])), len(np.unique(user[~mine]))) < _LEAST_USERS or mine.sum() < _LEAST_HOURS:
                continue
            distance = _distances(np.bincount(hour[mine], minlength=24), np.bincount(hour[~mine], minlength=24))
            shift = int(np.argmin(distance))
            if distance[0] > _SHIFTED and distance[shift] < _FITS * distance[0]:
                hours = shift if shift <= 12 else shift - 24
                yield Finding(
                    "warning",
                    "times",
                    f"The hours of {what} '{names[p]}' are those of the others {hours:+d} hours: another time zone?",
                    {
                        "hours apart": hours,
                        "distance as it is": round(float(distance[0]), 3),
                        "distance shifted": round(float(distance[shift]), 3),
                    },
                    _places(log, np.flatnonzero(part == p)),
                    "Write all times in UTC.",
                )


def _distances(mine: Array, others: Array) -> Array:
    """float64 [24]: total variation between the hours `mine` and those of the others, these k hours later."""
    p, q = mine / mine.sum(), others / others.sum()
    return np.array([np.abs(p - np.roll(q, k)).sum() / 2 for k in range(24)])


def _late_by_hours(log: Examined) -> Iterator[Finding]:
    """Feedback that begins at a whole hour after its row: its clock is in another zone."""
    view = log.by_user
    for name, task in log.run.tasks.items():
        known = first_feedback(log, name, task)
        dated = np.flatnonzero(known != NEVER)
        if len(dated) < _LEAST_DATED:
            continue
        delay = (known[dated] - view.time[dated]) / 1e6
        soonest = float(np.quantile(delay, 0.01))
        hours = int(soonest // 3600)
        if hours != 0 and abs(hours) <= 14 and soonest - 3600 * hours < _PAST_THE_HOUR:
            yield Finding(
                "warning",
                "times",
                f"Feedback of '{name}' begins {hours:+d} hours after its row, and not before: another time zone?",
                {"soonest, s": round(soonest, 1), "median, s": round(float(np.median(delay)), 1), "dated": len(dated)},
                log.places(view, dated[np.argsort(delay, kind="stable")]),
                "Write all times in UTC.",
            )


def _date(micros: int) -> str:
    return str(np.datetime64(int(micros) // 1_000_000, "s"))


def _places(log: Examined, chosen: Array) -> tuple[Place, ...]:
    rows = log.by_user.rows
    return tuple(
        Place(
            log.file(rows.row_id[i]),
            int(rows.row_id[i]) & ((1 << ROW_BITS) - 1),
            f"user {rows.users[rows.user[i]]}, {_date(rows.time[i])}",
        )
        for i in chosen[:MOST_PLACES].tolist()
    )
