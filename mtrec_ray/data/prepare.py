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

import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import CATALOGUE
from mtrec_ray.data.features.aggregates import declared
from mtrec_ray.data.features.attributes import Tables, read_tables
from mtrec_ray.data.features.matches import likened
from mtrec_ray.data.features.side_features import asks_item_past
from mtrec_ray.data.filesystem import FoundFile, find, joined, write_atomic, write_table_atomic, writing
from mtrec_ray.data.fitting.fit import MOST_INTERACTIONS, fit
from mtrec_ray.data.fitting.fitted_files import save_fitted
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.tokenizer import has_shared_end, make_tokenizer
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.prepared import Prepared, Workplace, is_complete, load_prepared, prepared_path
from mtrec_ray.data.preparing.catalogue import make_catalogue, matching_tasks
from mtrec_ray.data.preparing.dependence import bucket_part, encoding_part, reading_part
from mtrec_ray.data.preparing.digest import digest
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.item_pass import answer_items, is_sent
from mtrec_ray.data.preparing.made import AllSums, Encoded, make_manifest
from mtrec_ray.data.preparing.notes import boundary_notes, reuse_notes, summary, table_notes
from mtrec_ray.data.preparing.parallel import MapTasks, ray_tasks
from mtrec_ray.data.preparing.pieces import Kept, Pieces, key_of
from mtrec_ray.data.preparing.settle import Source
from mtrec_ray.data.preparing.shards import (
    DOCUMENTS,
    SHARDS,
    EncodeTask,
    common_digest,
    encode_bucket,
    encode_key,
)
from mtrec_ray.data.preparing.shuffle import (
    READ,
    BucketFiles,
    ShuffleTask,
    bucket_files,
    check_shuffled,
    file_key,
    shuffle_file,
    write_quarantine,
)
from mtrec_ray.data.preparing.stages import (
    Counts,
    FitTask,
    Sums,
    boundary_keys,
    collect_bucket,
    count_bucket,
    count_seconds,
    has_windows,
    send_bucket,
)
from mtrec_ray.data.preparing.vectors import store_vectors
from mtrec_ray.data.reading.drift import absent_columns
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.data.reading.user_map import read_user_map
from mtrec_ray.data.reading.vectors import with_sizes
from mtrec_ray.data.requests.deliveries import sources_of
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.data.requests.splits import Key, Locator, TimeSplit, explicit_boundaries, fitted_until, sizes
from mtrec_ray.errors import DataError
from mtrec_ray.progress import say
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.kinds import check_run

__all__ = ["Prepared", "load_prepared", "prepare"]

_KEPT_QUARANTINE = ".quarantine.parquet"
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
    identity = fingerprint(run)
    path = prepared_path(run, identity)
    if is_complete(path):
        say(f"Prepared data found in {path}")
        return Prepared.load(path)
    shared_end = has_shared_end(run)
    place = Workplace(path)
    kept = Kept(Pieces.of(run.data.prepared_dir), map_tasks)
    try:
        place.begin()
        preparation = _Preparation(with_sizes(run), map_tasks, place, kept, shared_end)
        manifest, refitted = preparation.make(identity)
        place.publish(manifest, kept)
    finally:
        place.close()
    prepared = Prepared.load(path)
    say("\n".join([*summary(prepared, run), *reuse_notes(kept, refitted, run)]))
    return prepared


@dataclass(frozen=True)
class _Preparation:
    run: Run
    map_tasks: MapTasks
    place: Workplace
    kept: Kept
    shared_end: bool

    def make(self, digest_of_all: str) -> tuple[Manifest, bool]:
        """Writes everything but the manifest. Also whether something else is fitted than by the `prepare` before."""
        run, kept = self.run, self.kept
        tables, vectors = store_vectors(self.place.fs, self.place.out, run, read_tables(run))
        for note in table_notes(tables):
            say(note)
        aggregates = declared(run)
        source, buckets, read = self._shuffle(tables)
        counts = kept.map(
            "counts", count_bucket, buckets, [b.key for b in buckets], source, "Counting candidates", "buckets"
        )
        for c in counts:
            read.update(c.settled.counts)
        boundaries = self._boundaries(counts, source, buckets)
        items_run = asks_item_past(run)
        fit_task = FitTask(
            source=source,
            tables=tables,
            boundaries=boundaries,
            fitted_until=fitted_until(run, boundaries),
            log_end=max(c.log_end for c in counts) if has_windows(run) else NEVER,
            most_interactions=MOST_INTERACTIONS // run.data.buckets,
            items_run=items_run,
        )
        sums = AllSums(self._collect(fit_task, buckets))
        answers = self._answer(fit_task, buckets) if items_run else [""] * len(buckets)
        fitted = fit(sums.collected, run, tables)
        tokenizer, tokenizer_digest = self._tokenizer(sums.collected, tables)
        encoder = None if tokenizer is None else TextEncoder(tokenizer)
        save_fitted(self.place.fs, f"{self.place.out}/fitted", fitted)
        catalogue = None
        if matching_tasks(run):
            catalogue = make_catalogue([sums.seen()], run, tables, fitted, encoder)
            write_table_atomic(self.place.fs, f"{self.place.out}/{CATALOGUE}", catalogue.to_table())
        until = fit_task.fitted_until
        task = EncodeTask(
            source=source,
            pieces=kept.pieces,
            run=encoding_part(run),
            period=run.data.period,
            tables=tables,
            boundaries=boundaries,
            log_end=fit_task.log_end,
            # Of what was fitted, requests hold not what tasks are like, and the statistics only where they are read.
            fitted=replace(fitted, tasks=[], statistics=fitted.statistics if aggregates or likened(run) else []),
            encoder=encoder,
            shared_end=self.shared_end,
            items_run=items_run,
            sample_below=min(2**64 - 1, int(2**64 * _SCALER_ROWS / sums.collected.train_rows)),
            sample_until=NEVER if until is None else until.train_until.time,
            common="",
        )
        task = replace(task, common=common_digest(task, tokenizer_digest))
        encoded = self._encode(task, buckets, answers)
        manifest = make_manifest(
            run, digest_of_all, self.shared_end, fitted, tokenizer, boundaries, encoded, catalogue, read, counts, sums
        )
        made_of = key_of(source.run, run.features.aggregates, run.features.matches, run.backbone.name)
        refitted = kept.changed(made_of, task.common)
        return manifest.model_copy(update={"vectors": vectors}), refitted

    def _shuffle(self, tables: Tables) -> tuple[Source, list[BucketFiles], Counter[str]]:
        """Where the events of the buckets are, and how many rows were read, in quarantine and so on."""
        run, place, pieces = self.run, self.place, self.kept.pieces
        files = find_files(run.data)
        check_log(files, run)
        part = reading_part(run)
        user_map = [] if run.data.user_map is None else find(run.data.user_map.path)
        keys = [file_key(file, part, user_map) for file in files]
        task = ShuffleTask(part, pieces, files, read_user_map(run.data))
        items = [(i, file, key) for i, (file, key) in enumerate(zip(files, keys, strict=True))]
        counts = self.kept.map(READ, shuffle_file, items, keys, task, "Reading logs", "files")
        quarantine = f"{place.out}/quarantine.parquet"
        spoilt = [key for key, c in zip(keys, counts, strict=True) if c.reasons]
        of_tables = write_quarantine(pieces, spoilt, quarantine, (tables.items, tables.users))
        stays = joined(run.data.prepared_dir, posixpath.basename(place.root) + _KEPT_QUARANTINE)
        try:
            ids = check_shuffled(files, counts, run, stays)
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
        numbers = np.array([file.number for file in files], dtype=np.int64)
        named = pa.table({"number": numbers, "path": [file.path for file in files]})
        write_table_atomic(place.fs, f"{place.out}/files.parquet", named)
        of_bucket = bucket_part(run)
        source = Source(of_bucket, place.fs, place.work, ids, sources_of(files), numbers)
        return source, bucket_files(files, keys, counts, pieces, of_bucket, ids), read

    def _keep(self, quarantine: str) -> None:
        """The quarantine file outlives a preparation that failed."""
        self.place.fs.copy_file(quarantine, self.place.root + _KEPT_QUARANTINE)

    def _collect(self, task: FitTask, buckets: Sequence[BucketFiles]) -> Iterator[Sums]:
        beside = (self._table_files(), task.boundaries, task.fitted_until, task.log_end)
        keys = [key_of(bucket.key, beside) for bucket in buckets]
        return self.kept.each("sums", collect_bucket, buckets, keys, task, "Collecting statistics", "buckets")

    def _table_files(self) -> list[list[FoundFile]]:
        return [find(table.path) for table in (self.run.data.items, self.run.data.users) if table is not None]

    def _answer(self, task: FitTask, buckets: Sequence[BucketFiles]) -> list[str]:
        """Tells candidates how their items have done; a digest of what each bucket is told."""
        fs, work, numbers = task.source.fs, task.source.work, range(len(buckets))
        unsent = [bucket for bucket in buckets if not is_sent(fs, work, bucket.number)]
        if unsent:
            self.map_tasks(send_bucket, unsent, task, "Sending items", "buckets")
        told = self.map_tasks(answer_items, numbers, (fs, work, len(buckets)), "Following items", "buckets")
        return [digest([of_items[bucket] for of_items in told]) for bucket in numbers]

    def _encode(self, task: EncodeTask, buckets: Sequence[BucketFiles], answers: Sequence[str]) -> Encoded:
        pieces = self.kept.pieces
        known = {kind: pieces.known(kind) for kind in (SHARDS, DOCUMENTS)}
        tables = self._table_files()
        keys = [encode_key(bucket, task, tables, told) for bucket, told in zip(buckets, answers, strict=True)]
        found = self.kept.map(
            "buckets",
            encode_bucket,
            buckets,
            keys,
            task,
            "Encoding requests",
            "buckets",
            usable=lambda of_bucket: (
                known[SHARDS].issuperset(key for *_, key in of_bucket.shards)
                and (of_bucket.documents is None or of_bucket.documents in known[DOCUMENTS])
            ),
        )
        shards = [
            (period, bucket.number, split, key)
            for bucket, of_bucket in zip(buckets, found, strict=True)
            for period, split, key in of_bucket.shards
        ]
        documents = [of_bucket.documents for of_bucket in found if of_bucket.documents is not None]
        for kind, used in ((SHARDS, [key for *_, key in shards]), (DOCUMENTS, documents)):
            self.kept.count(kind, used, len(set(used) - known[kind]))
        return Encoded(sorted(shards), pieces.load_all(SHARDS, [key for *_, key in sorted(shards)]), documents)

    def _boundaries(self, counts: Sequence[Counts], source: Source, buckets: Sequence[BucketFiles]) -> TimeSplit | None:
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
            for note in boundary_notes(explicit, sum((c.hours for c in counts), Counter[int]()), run):
                say(note)
            return explicit
        places = sizes(total, run.split)
        if not 0 < places[0] < places[1] < total:
            raise DataError(
                f"{total} candidate(s) are too few for a split by time into {1 - run.split.valid - run.split.test:.0%} "
                f"train, {run.split.valid:.0%} validation and {run.split.test:.0%} test; give a longer log, or "
                "split.by: column."
            )
        return TimeSplit(*self._locator(counts, source, buckets).find(list(places)))

    def _locator(self, counts: Sequence[Counts], source: Source, buckets: Sequence[BucketFiles]) -> Locator:
        def count(width: int, lows: list[int] | None) -> Counter[int]:
            if lows is None:
                return sum((c.hours for c in counts), Counter[int]())
            parts = self.map_tasks(count_seconds, buckets, (source, lows), "Finding the split", "buckets")
            return sum(parts, Counter[int]())

        def members(lows: list[int]) -> list[Key]:
            parts = self.map_tasks(boundary_keys, buckets, (source, lows), "Finding the split", "buckets")
            return [key for part in parts for key in part]

        return Locator(count, members)

    def _tokenizer(self, seen: Gathered, tables: Tables) -> tuple[PreTrainedTokenizerBase | None, str]:
        """The tokenizer, and the digest of its files."""
        tokenizer = make_tokenizer(self.run, tables, seen.event_items, seen.words, seen.queries, seen.event_versions)
        files: dict[str, bytes] = {}
        if tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                with writing(folder):
                    try:
                        tokenizer.save_pretrained(folder)
                    except Exception as error:  # tokenizers raises nothing more special
                        if "os error" not in str(error):
                            raise
                        raise OSError(str(error)) from error
                files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
        for name, content in files.items():
            write_atomic(self.place.fs, f"{self.place.out}/tokenizer/{name}", content)
        return tokenizer, digest(files)
