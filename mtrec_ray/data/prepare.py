"""Logs -> prepared data, in passes over files and then over buckets of users; each pass is one Ray Data job.

    files    -> canonical events per bucket (a shuffle through files), quarantine
    buckets  -> without repeated deliveries, feedback joined, long users cut, where the run asks for it
    buckets  -> counts of candidates, from which the split boundaries follow
    buckets  -> sums over the train rows, from which everything fitted follows, and the catalogue of items, if a task
                needs it; what happened to items
    items    -> how each candidate's item has done so far with all users (a second exchange through files)
    buckets  -> encoded shards, length sidecars, documents; last the manifest

A task holds one batch of a file or one bucket in memory (`data.buckets` sets how much that is); the result is the same
however many tasks run at once.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import CATALOGUE, Catalogue
from mtrec_ray.data.features.aggregates import declared
from mtrec_ray.data.features.attributes import Tables, category_columns, read_tables
from mtrec_ray.data.features.scalers import number_entries
from mtrec_ray.data.filesystem import write_atomic, write_table_atomic
from mtrec_ray.data.fitting.fit import MOST_INTERACTIONS, Collected, Fitted, fit
from mtrec_ray.data.fitting.fitted_files import save_fitted
from mtrec_ray.data.fitting.tokenizer import has_shared_end, make_tokenizer
from mtrec_ray.data.manifest import SPLITS, CatalogueEntry, CategoryEntry, Manifest
from mtrec_ray.data.prepared import Prepared, Workplace, is_complete, load_prepared, prepared_path
from mtrec_ray.data.preparing.catalogue import item_categories, make_catalogue, matching_tasks
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.item_pass import answer_items
from mtrec_ray.data.preparing.notes import delivery_notes
from mtrec_ray.data.preparing.parallel import MapTasks, ray_tasks
from mtrec_ray.data.preparing.settle import SettleTask, must_settle, settle_bucket
from mtrec_ray.data.preparing.shuffle import ShuffleTask, check_shuffled, shuffle_file, write_quarantine
from mtrec_ray.data.preparing.stages import (
    ROW_GROUP_REQUESTS,
    Counts,
    EncodeTask,
    FitTask,
    Source,
    Written,
    boundary_keys,
    collect_bucket,
    count_bucket,
    count_seconds,
    encode_bucket,
    user_counts,
)
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.reading.drift import absent_columns
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.data.reading.user_map import read_user_map
from mtrec_ray.data.requests.deliveries import sources_of
from mtrec_ray.data.requests.splits import Key, Locator, TimeSplit, explicit_boundaries, sizes
from mtrec_ray.errors import DataError
from mtrec_ray.progress import say
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.kinds import check_run

__all__ = ["Prepared", "load_prepared", "prepare"]

_SCALER_ROWS = 100_000
"""Train rows, about, that means, deviations and quantiles of the numbers are taken from."""


def prepare(run: Run, map_tasks: MapTasks = ray_tasks) -> Prepared:
    """The prepared data of a run: made now, or found if files and settings are those of an earlier time.

    `map_tasks`: how tasks are run; by default as Ray Data jobs, for which Ray must be initialised.

    Raises:
        DataError: logs or tables that cannot be used, too many bad rows, no train rows, a task without labels.
        ConfigError: settings that contradict the logs or each other.
        BackboneError: a backbone whose config or tokenizer cannot be loaded.
    """
    import_plugins(run.plugins)
    check_run(run)
    path = prepared_path(run, fingerprint(run))
    if is_complete(path):
        say(f"Prepared data found in {path}")
        return Prepared.load(path)
    shared_end = has_shared_end(run)
    place = Workplace(path)
    try:
        manifest = _Preparation(run, map_tasks, place, shared_end).make(Path(path).name)
        place.publish(manifest)
    finally:
        place.close()
    prepared = Prepared.load(path)
    say(_summary(prepared, run))
    return prepared


@dataclass(frozen=True)
class _Preparation:
    run: Run
    map_tasks: MapTasks
    place: Workplace
    shared_end: bool

    def make(self, digest: str) -> Manifest:
        """Writes everything but the manifest."""
        run, buckets = self.run, range(self.run.data.buckets)
        tables = read_tables(run)
        aggregates = declared(run)
        source, read, last = self._shuffle(tables)
        counts = self.map_tasks(count_bucket, buckets, source, "Counting candidates", "buckets")
        boundaries = self._boundaries(counts, source)
        most, items_run = MOST_INTERACTIONS // run.data.buckets, any(a.kind == "running" for a in aggregates)
        log_end = max(last, *(c.log_end for c in counts))
        fit_task = FitTask(source, tables, boundaries, log_end, most, items_run)
        collected = self.map_tasks(collect_bucket, buckets, fit_task, "Collecting statistics", "buckets")
        if items_run:
            place = (source.fs, source.work, run.data.buckets)
            self.map_tasks(answer_items, buckets, place, "Following items", "buckets")
        parts = [part for part, _, _ in collected]
        with_factors = any(a.kind == "~" and a.of == "item" for a in aggregates)
        fitted = fit(parts, run, tables, with_factors)
        tokenizer = self._tokenizer(parts, tables)
        save_fitted(self.place.fs, f"{self.place.out}/fitted", fitted)
        catalogue = None
        if matching_tasks(run):
            seen = [part for _, _, part in collected if part is not None]
            catalogue = make_catalogue(seen, run, tables, fitted, tokenizer)
            write_table_atomic(self.place.fs, f"{self.place.out}/{CATALOGUE}", catalogue.to_table())
        train_rows = sum(part.users.rows().sum() for part in parts)
        below = min(2**64 - 1, int(2**64 * _SCALER_ROWS / train_rows))
        task = EncodeTask(
            source,
            self.place.out,
            tables,
            boundaries,
            log_end,
            fitted,
            tokenizer,
            self.shared_end,
            items_run,
            below,
            None if catalogue is None else catalogue.items,
        )
        written = self.map_tasks(encode_bucket, buckets, task, "Encoding requests", "buckets")
        items = len(set().union(*(items for _, items, _ in collected)))
        return self._manifest(
            digest, fitted, tokenizer, boundaries, written, catalogue, _counts(read, counts, written, items)
        )

    def _shuffle(self, tables: Tables) -> tuple[Source, Counter[str], int]:
        """The events in buckets; how many rows were read, in quarantine and so on; the last time of feedback."""
        run, place = self.run, self.place
        files = find_files(run.data)
        check_log(files, run)
        task = ShuffleTask(run, place.fs, place.work, files, read_user_map(run.data))
        counts = self.map_tasks(shuffle_file, list(enumerate(files)), task, "Reading logs", "files")
        quarantine = f"{place.out}/quarantine.parquet"
        of_tables = write_quarantine(place.fs, place.work, quarantine, (tables.items, tables.users))
        try:
            ids = check_shuffled(files, counts, run, f"{place.path}.quarantine.parquet")
        except DataError:
            self._keep(quarantine)
            raise
        for note in absent_columns(files, [c.columns for c in counts], run):
            say(note)
        read = Counter(
            rows_read=sum(c.rows_read for c in counts),
            rows_quarantined=of_tables.total() + sum(c.reasons.total() for c in counts),
        )
        if run.data.user_map is not None:
            read["rows_unmapped"] = sum(c.unmapped for c in counts)
        if not must_settle(run):
            return Source(run, place.fs, place.work, ids), read, -1
        settle = SettleTask(run, place.fs, place.work, f"{place.work}/settled", sources_of(files))
        settled = self.map_tasks(settle_bucket, range(run.data.buckets), settle, "Settling deliveries", "buckets")
        for part in settled:
            read.update(part.counts)
        return Source(run, place.fs, settle.settled, ids), read, max(part.last for part in settled)

    def _keep(self, quarantine: str) -> None:
        """The quarantine file outlives a preparation that failed."""
        self.place.fs.copy_file(quarantine, f"{self.place.root}.quarantine.parquet")

    def _boundaries(self, counts: Sequence[Counts], source: Source) -> TimeSplit | None:
        """Raises `DataError` for too few candidates, or a split column that says nothing of some of them."""
        run, total = self.run, sum(c.candidates for c in counts)
        if run.split.by == "column":
            said = sum((c.said for c in counts), Counter[int]())
            if said[-1]:
                raise DataError(
                    f"split.column: {said[-1]} of {total} candidates have neither train, valid nor test in column "
                    f"'{run.split.column}'. Correct the column, or use split.by: time."
                )
            return None
        if run.split.by == "user":
            return None
        if (explicit := explicit_boundaries(run)) is not None:
            return explicit
        places = sizes(total, run.split)
        if not 0 < places[0] < places[1] < total:
            raise DataError(
                f"{total} candidate(s) are too few for a split by time into {1 - run.split.valid - run.split.test:.0%} "
                f"train, {run.split.valid:.0%} validation and {run.split.test:.0%} test; give a longer log, or "
                "split.by: column."
            )
        return TimeSplit(*self._locator(counts, source).find(list(places)))

    def _locator(self, counts: Sequence[Counts], source: Source) -> Locator:
        buckets = range(self.run.data.buckets)

        def count(width: int, lows: list[int] | None) -> Counter[int]:
            if lows is None:
                return sum((c.hours for c in counts), Counter[int]())
            parts = self.map_tasks(count_seconds, buckets, (source, lows), "Finding the split", "buckets")
            return sum(parts, Counter[int]())

        def members(lows: list[int]) -> list[Key]:
            parts = self.map_tasks(boundary_keys, buckets, (source, lows), "Finding the split", "buckets")
            return [key for part in parts for key in part]

        return Locator(count, members)

    def _tokenizer(self, parts: Sequence[Collected], tables: Tables) -> PreTrainedTokenizerBase | None:
        items = [item for part in parts for item in part.event_items]
        words = [word for part in parts for word in part.words]
        queries = [query for part in parts for query in part.queries]
        versions = [row for part in parts for row in part.event_versions.tolist()]
        tokenizer = make_tokenizer(self.run, tables, items, words, queries, versions)
        if tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).iterdir()):
                    write_atomic(self.place.fs, f"{self.place.out}/tokenizer/{file.name}", file.read_bytes())
        return tokenizer

    def _manifest(
        self,
        digest: str,
        fitted: Fitted,
        tokenizer: PreTrainedTokenizerBase | None,
        boundaries: TimeSplit | None,
        written: Sequence[Written],
        catalogue: Catalogue | None,
        counts: dict[str, int],
    ) -> Manifest:
        ends = {} if boundaries is None else {name: key.time for name, key in boundaries._asdict().items()}
        return Manifest(
            fingerprint=digest,
            tasks=fitted.tasks,
            categories=_category_entries(self.run, fitted),
            numbers=number_entries(self.run, written),
            num_users=fitted.users.size,
            num_items=fitted.items.size,
            context=context_numbers(self.run.data.columns),
            domains=["", *fitted.domains.keys.to_pylist()],
            policies=["", *fitted.policies.keys.to_pylist()],
            positions=_ends([w.positions for w in written]),
            propensities=sum(w.propensities for w in written),
            history_layout="shared_end" if self.shared_end else "staircase",
            vocab_size=0 if tokenizer is None else len(tokenizer),
            max_request_tokens=max(w.longest["request"] for w in written),
            max_position=max(w.longest["position"] for w in written),
            row_group_requests=ROW_GROUP_REQUESTS,
            shards={split: [w.shards[split] for w in written] for split in SPLITS},
            documents=[w.documents for w in written if w.documents is not None],
            boundaries=ends,
            catalogue=None if catalogue is None else _catalogue_entry(self.run, catalogue),
            counts=counts,
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


def _counts(read: Counter[str], counts: Sequence[Counts], written: Sequence[Written], items: int) -> dict[str, int]:
    encoded = sum((Counter(w.counts) for w in written), Counter[str]())
    shards = [shard for w in written for shard in w.shards.values()]
    return {
        **read,
        "events": encoded["events"],
        "users": sum(c.users for c in counts),
        "users_with_few_candidates": sum(c.few for c in counts),
        "items": items,
        "requests": sum(shard.requests for shard in shards),
        "candidates": sum(shard.candidates for shard in shards),
        "cut_texts": encoded["cut_events"] + encoded["cut_candidates"],
        "cut_events": encoded["cut_events"],
        "cut_candidates": encoded["cut_candidates"],
        "duplicates": sum(c.duplicates for c in counts),
        **{name: encoded[name] for split in SPLITS[1:] for name in user_counts(split)},
    }


def _summary(prepared: Prepared, run: Run) -> str:
    manifest = prepared.manifest
    counts = manifest.counts
    sizes_text = ", ".join(f"{sum(s.candidates for s in manifest.shards[split])} {split}" for split in SPLITS)
    lines = [
        f"Prepared {counts['candidates']} candidates ({sizes_text}) of {counts['users']} users in {counts['requests']} "
        f"requests: {prepared.path}"
    ]
    if counts["rows_quarantined"]:
        lines.append(f"{counts['rows_quarantined']} bad rows are in {prepared.path}/quarantine.parquet")
    if not manifest.boundaries and counts["users_with_few_candidates"]:
        lines.append(f"{counts['users_with_few_candidates']} users have fewer than 3 candidates: all in train")
    if counts["cut_texts"]:
        lines.append(
            f"{counts['cut_events']} events and {counts['cut_candidates']} candidates have texts longer than "
            "history.event_tokens or history.candidate_tokens; they were cut"
        )
    lines += delivery_notes(counts, run)
    lines += [
        f"No candidate is in {split}" for split in SPLITS if not any(s.candidates for s in manifest.shards[split])
    ]
    return "\n".join(lines)
