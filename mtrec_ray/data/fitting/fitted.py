"""What encoding needs to know of the train period; `fit` makes it, and what only reads it needs nothing of that."""

from dataclasses import dataclass

from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.manifest import TaskEntry


@dataclass(frozen=True)
class Fitted:
    """Vocabularies and statistics of the train rows, and what tasks are like."""

    users: Vocabulary
    items: Vocabulary
    categories: dict[str, Vocabulary]
    domains: Vocabulary
    policies: Vocabulary
    widths: dict[str, int]
    statistics: list[Statistics]
    """One per fold of users, which it leaves out, and the last over all"""
    tasks: list[TaskEntry]
