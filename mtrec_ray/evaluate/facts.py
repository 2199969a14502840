"""What metrics know of a split's candidates beside labels and scores, looked up by row id in the prepared shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mtrec_ray.data.reading.context import row_weights, weighs
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.lists import ListObjective

_BLOCK = 16
"""Row groups that are read at once for traits: categories and numbers of a whole split may be too many."""


@dataclass(frozen=True)
class Facts:
    """Of N candidates."""

    users: np.ndarray
    """[N] any sortable ids"""
    shown: np.ndarray
    """int64 [N] see `shown_together`"""
    items: np.ndarray | None = None
    """[N] any sortable ids; None where no metric asks for them"""
    traits: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[N, ...] per objective over lists; see `Judged.traits`"""
    ranks: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[N] per task that matches users with items; see `Judged.ranks`. Of one score column, unlike the rest; empty if it
    ranks no catalogue."""
    weights: np.ndarray | None = None
    """[N] see `Judged.weights`"""


FactsOf = Callable[[np.ndarray, Sequence[TaskKind]], Facts]
"""Row ids [N] and the kinds of all tasks -> what is known of these rows."""


def judged(
    kind: TaskKind, labels: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray], facts: Facts
) -> Judged | None:
    """What the metrics of one task see of N rows, from labels and scores [N] by task; None if it was not scored."""
    if kind.ranks not in scores:
        return None
    parent = None if kind.parent is None else kind.parent.task.name
    return Judged(
        labels=np.zeros(len(facts.shown)) if kind.labels == "none" else labels[kind.task.name],
        scores=scores[kind.ranks],
        users=facts.users,
        train_mean=kind.task.mean,
        shown=facts.shown,
        parent_labels=None if parent is None else labels[parent],
        parent_scores=None if parent is None else scores.get(parent),
        items=facts.items,
        traits=facts.traits.get(kind.task.name),
        ranks=facts.ranks.get(kind.task.name, np.zeros(len(facts.shown))) if kind.matches else None,
        weights=facts.weights,
    )


def shown_together(request: np.ndarray, events: np.ndarray, row_id: np.ndarray) -> np.ndarray:
    """int64 [N]: the smallest row id of those that each row was shown with.

    Those are the candidates of one request that see equally many of its events [N]; see `tasks.groups`.
    """
    order = np.lexsort((row_id, events, request))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(request[order]) != 0) | (np.diff(events[order]) != 0)
    shown = np.empty(len(order), dtype=np.int64)
    shown[order] = row_id[order][begins][np.cumsum(begins) - 1]
    return shown


def facts_of(shards: Shards) -> FactsOf:
    """Looks facts up in a split's shards; each column is read once, when first asked for."""
    known: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    weights: list[tuple[np.ndarray, np.ndarray]] = []
    traits: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def look_up(row_ids: np.ndarray, kinds: Sequence[TaskKind]) -> Facts:
        if not known:
            known.append(_read_lists(shards))
            if weighs(shards.context):
                weights.append(read_weights(shards))
        asked = [kind for kind in kinds if isinstance(kind, ListObjective) and kind.task.name not in traits]
        if asked:
            traits.update(_read_traits(shards, asked))
        ids, users, shown = known[0]
        places = np.searchsorted(ids, row_ids)
        found = {name: values[np.searchsorted(keys, row_ids)] for name, (keys, values) in traits.items()}
        counts = weights[0][1][places] if weights else None  # both ascend by row id
        return Facts(users[places], shown[places], traits=found, weights=counts)

    return look_up


def _read_lists(shards: Shards) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row ids [N], ascending, with user codes [N] and `shown_together` [N]."""
    table = shards.rows(np.arange(shards.num_requests), ["user", "row_id", "candidate_events"])
    codes = np.unique(table.column("user").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    row_ids = _flat(table, "row_id")
    request = np.repeat(np.arange(table.num_rows), np.diff(table.column("row_id").combine_chunks().offsets.to_numpy()))
    shown = shown_together(request, _flat(table, "candidate_events"), row_ids)
    order = np.argsort(row_ids)
    return row_ids[order], codes[request][order], shown[order]


def read_weights(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Row ids [N] of a split, ascending, and how much each row counts [N]."""
    table = shards.rows(np.arange(shards.num_requests), ["row_id", "context"])
    row_ids = _flat(table, "row_id")
    context = _flat(table, "context").astype(np.float64).reshape(len(row_ids), len(shards.context))
    order = np.argsort(row_ids)
    return row_ids[order], row_weights(context, shards.context)[order]


def _read_traits(shards: Shards, kinds: Sequence[ListObjective]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per objective the row ids [N] of the split, ascending, and the traits [N, ...]."""
    if not shards.num_requests:
        return {kind.task.name: (np.empty(0, np.int64), np.empty(0)) for kind in kinds}
    size = _BLOCK * shards.row_group_requests
    ids: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {kind.task.name: [] for kind in kinds}
    for first in range(0, shards.num_requests, size):
        numbers = np.arange(first, min(first + size, shards.num_requests))
        table = shards.rows(numbers, ["row_id", "categories", "numbers"])
        row_ids = _flat(table, "row_id")
        ids.append(row_ids)
        categories, features = (_flat(table, name).reshape(len(row_ids), -1) for name in ("categories", "numbers"))
        for kind in kinds:
            parts[kind.task.name].append(kind.traits(categories, features))
    row_ids = np.concatenate(ids)
    order = np.argsort(row_ids)
    return {name: (row_ids[order], np.concatenate(found)[order]) for name, found in parts.items()}


def _flat(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)
