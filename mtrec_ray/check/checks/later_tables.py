"""Columns of the tables of items and users that know what happened after a row."""

from collections.abc import Iterator

from mtrec_ray.check.checks.counted_forward import Known, keep_closest, too_close
from mtrec_ray.check.examined import Examined
from mtrec_ray.check.finding import CHECKS, Finding


@CHECKS.register("later_tables")
def later_tables(log: Examined) -> Iterator[Finding]:
    """Columns of the tables of items and users with later knowledge: they tell the log's rows or labels.

    Without `valid_from` a table has one value for all rows of a key, the earliest and those of test alike. See
    `check.counts` for what an honest column cannot know.
    """
    for scope, view in (("item", log.by_item), ("user", log.by_user)):
        found: dict[str, Known] = {}
        features = [feature for feature in view.features if feature.scope == scope]
        keep_closest(found, too_close(log, view, scope, features, with_later=True))
        for known in found.values():
            yield known.finding(
                log,
                "later_tables",
                f"Column {known.feature.described} tells {known.target.name}",
                f"Leave '{known.feature.name}' out, or take the table as it stood before the log began; "
                "features.aggregates counts such things as of each row.",
            )
