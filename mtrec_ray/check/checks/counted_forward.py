"""Columns of the log that know what the user, the item or the session does later."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.counts import Closeness, Target, closeness, is_dishonest, keys_of, later_targets, targets
from mtrec_ray.check.examined import Examined, View
from mtrec_ray.check.features import Feature
from mtrec_ray.check.finding import CHECKS, Finding


@CHECKS.register("counted_forward")
def counted_forward(log: Examined) -> Iterator[Finding]:
    """Columns of the log that are counted forward: they know rows or labels that come after their own.

    See `check.counts` for what an honest column cannot know.
    """
    features = [feature.name for feature in log.by_user.features if feature.scope == "log"]
    found: dict[str, Known] = {}
    for view, scope in ((log.by_user, "log"), (log.by_item, "item")):
        of_view = [feature for feature in view.features if feature.name in features]
        keep_closest(found, too_close(log, view, scope, of_view, with_later=False))
    for known in found.values():
        yield known.finding(
            log,
            "counted_forward",
            f"Column {known.feature.described} tells {known.target.name}",
            f"Count '{known.feature.name}' only over rows before its own when the log is written, or leave it out; "
            "features.aggregates counts such things as of each row.",
        )


class Known:
    """A feature that tells a target too closely."""

    def __init__(self, view: View, feature: Feature, target: Target, close: Closeness) -> None:
        self.view, self.feature, self.target, self.close = view, feature, target, close

    @property
    def margin(self) -> float:
        return self.close.high / min(1.0, self.target.known)

    def finding(self, log: Examined, check: str, what: str, remedy: str) -> Finding:
        assert self.feature.values is not None
        chosen, value, before = self.target.chosen, self.target.value, self.target.known
        there = ~np.isnan(self.feature.values[chosen])
        largest = np.flatnonzero(there)[np.argsort(-value[there], kind="stable")]
        notes = [f"{self.feature.name} {self.feature.values[chosen[i]]:g}; {value[i]:.4g}" for i in largest[:8]]
        return Finding(
            severity="error" if self.feature.used else "warning",
            check=check,
            what=f"{what}: of what chance leaves open at the least to all that is known then, it leaves "
            f"{self.close.value:.2g}" + ("" if self.feature.used else " (the config does not use it)") + ".",
            evidence={
                "tells": self.target.name,
                "left open, of what chance leaves": round(self.close.value, 4),
                "the same by what was known before": round(before, 4) if np.isfinite(before) else "nothing tells it",
                "keys": self.close.keys,
            },
            rows=log.places(self.view, chosen[largest], notes),
            remedy=remedy,
        )


def too_close(log: Examined, view: View, scope: str, features: list[Feature], with_later: bool) -> Iterator[Known]:
    """Each of `features` with each target that it tells too closely; `with_later`: also the last part of the log."""
    features = [feature for feature in features if feature.values is not None]
    tasks = list(log.run.tasks)
    for by, key in keys_of(view, scope).items() if features else ():
        parts = [targets(view, key, by, tasks)] + ([later_targets(view, key, by, tasks)] if with_later else [])
        for target in (target for part in parts for target in part):
            for feature in features:
                assert feature.values is not None
                close = closeness(feature.values[target.chosen], target)
                if close is not None and is_dishonest(close, target):
                    yield Known(view, feature, target, close)


def keep_closest(found: dict[str, Known], more: Iterator[Known]) -> None:
    """Of each feature the target that it tells most closely, the first of equals."""
    for known in more:
        name = known.feature.name
        if name not in found or known.margin < found[name].margin:
            found[name] = known
