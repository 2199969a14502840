"""What the passes made, put together in the manifest."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import CATALOGUE, Catalogue
from mtrec_ray.data.features.attributes import category_columns
from mtrec_ray.data.features.scalers import number_entries
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.tally import Tally, Total
from mtrec_ray.data.id_hashes import table_collisions
from mtrec_ray.data.manifest import SPLITS, CatalogueEntry, CategoryEntry, Manifest, ShardEntry
from mtrec_ray.data.preparing.catalogue import SeenItems, item_categories
from mtrec_ray.data.preparing.pieces import PIECES
from mtrec_ray.data.preparing.shards import DOCUMENTS, ROW_GROUP_REQUESTS, SHARDS, Written
from mtrec_ray.data.preparing.stages import Counts, Figures, Sums, user_counts
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.requests.splits import TimeSplit


@dataclass(frozen=True)
class Encoded:
    """All shards, ordered by period and bucket."""

    shards: list[tuple[int, int, str, str]]
    """(period, bucket, split, key)"""
    written: list[Written]
    documents: list[str]
    """Keys"""

    def entries(self, split: str) -> list[ShardEntry]:
        return [
            ShardEntry(
                path=f"../{PIECES}/{SHARDS}/{key}.parquet",
                bucket=bucket,
                period=period,
                requests=written.requests,
                candidates=written.candidates,
                tokens=written.tokens,
                sha256=written.sha256,
            )
            for (period, bucket, of_split, key), written in zip(self.shards, self.written, strict=True)
            if of_split == split
        ]


class AllSums:
    """What all buckets add up to, one after another: no more than one of them is held beside it."""

    def __init__(self, parts: Iterable[Sums]) -> None:
        self.collected = Gathered()
        self.items: set[str] = set()
        self.figures: list[Figures] = []
        """Of each bucket"""
        self._seen = Total()
        for part in parts:
            self.collected.add(part.collected)
            self.items |= part.items
            self.figures.append(part.figures)
            if part.seen is not None:
                counts = np.stack([part.seen.shown, *part.seen.positives], axis=1).astype(np.float64)
                self._seen.add(Tally(part.seen.items, counts), part.seen.first_seen[:, None])

    def seen(self) -> SeenItems:
        """For the catalogue: what all buckets saw of their items."""
        tally = self._seen.tally()
        shown, *positives = tally.sums.T.astype(np.int64)
        return SeenItems(tally.keys, self._seen.times()[:, 0], shown, np.stack(positives))


def make_manifest(
    run: Run,
    digest: str,
    shared_end: bool,
    fitted: Fitted,
    tokenizer: PreTrainedTokenizerBase | None,
    boundaries: TimeSplit | None,
    encoded: Encoded,
    catalogue: Catalogue | None,
    read: Counter[str],
    counts: Sequence[Counts],
    sums: AllSums,
) -> Manifest:
    """`digest`: the run's fingerprint; `read`: counts of the first pass; `counts`: of each bucket."""
    written = encoded.written
    ends = {} if boundaries is None else {name: key.time for name, key in boundaries._asdict().items()}
    return Manifest(
        fingerprint=digest,
        tasks=fitted.tasks,
        categories=_category_entries(run, fitted),
        numbers=number_entries(run, written),
        num_users=fitted.users.size,
        num_items=fitted.items.size,
        context=context_numbers(run.data.columns),
        domains=["", *fitted.domains.keys.to_pylist()],
        policies=["", *fitted.policies.keys.to_pylist()],
        positions=_ends([f.positions for f in sums.figures]),
        propensities=sum(f.propensities for f in sums.figures),
        history_layout="shared_end" if shared_end else "staircase",
        vocab_size=0 if tokenizer is None else len(tokenizer),
        max_request_tokens=max(w.longest["request"] for w in written),
        max_position=max(w.longest["position"] for w in written),
        row_group_requests=ROW_GROUP_REQUESTS,
        shards={split: encoded.entries(split) for split in SPLITS},
        documents=[f"../{PIECES}/{DOCUMENTS}/{key}.parquet" for key in encoded.documents],
        boundaries=ends,
        catalogue=None if catalogue is None else _catalogue_entry(run, catalogue),
        id_collisions=table_collisions(fitted.users.keys.to_pylist(), fitted.items.keys.to_pylist(), run),
        counts=_counts(read, counts, sums, written),
    )


def _ends(ranges: Sequence[list[int]]) -> list[int]:
    """The smallest and the largest of all; empty if all are."""
    found = [end for ends in ranges for end in ends]
    return [min(found), max(found)] if found else []


def _catalogue_entry(run: Run, catalogue: Catalogue) -> CatalogueEntry:
    in_train = int((catalogue.shown > 0).sum())
    return CatalogueEntry(path=CATALOGUE, items=len(catalogue), in_train=in_train, categories=item_categories(run))


def _category_entries(run: Run, fitted: Fitted) -> list[CategoryEntry]:
    entries, offset = [], 0
    for _, category in category_columns(run):
        name = category.column
        width = fitted.widths[name]
        entries.append(CategoryEntry(name=name, offset=offset, width=width, size=fitted.categories[name].size))
        offset += width
    return entries


def _counts(read: Counter[str], counts: Sequence[Counts], sums: AllSums, written: Sequence[Written]) -> dict[str, int]:
    encoded = sum((Counter(w.counts) for w in written), Counter[str]())
    users = sum((Counter(f.users) for f in sums.figures), Counter[str]())
    return {
        **read,
        "events": sum(f.events for f in sums.figures),
        "users": sum(c.users for c in counts),
        "users_with_few_candidates": sum(c.few for c in counts),
        "items": len(sums.items),
        "requests": sum(w.requests for w in written),
        "candidates": sum(w.candidates for w in written),
        "cut_texts": encoded["cut_events"] + encoded["cut_candidates"],
        "cut_events": encoded["cut_events"],
        "cut_candidates": encoded["cut_candidates"],
        "duplicates": sum(c.duplicates for c in counts),
        **{name: users[name] for split in SPLITS[1:] for name in user_counts(split)},
    }
