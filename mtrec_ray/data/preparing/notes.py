"""What `prepare` says in the end: of the data it made, of the deliveries it read, and of what it did not do again."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.filesystem import joined
from mtrec_ray.data.id_hashes import collision_notes
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.pieces import Kept
from mtrec_ray.data.preparing.shards import SHARDS
from mtrec_ray.data.preparing.shuffle import READ
from mtrec_ray.data.requests.splits import TimeSplit


def reuse_notes(kept: Kept, refitted: bool, run: Run) -> list[str]:
    """What was there already, and why not more. `refitted`: something else is fitted than by the `prepare` before."""
    notes = []
    for kind, unit, done in ((READ, "files", "read"), (SHARDS, "shards", "encoded")):
        if kept.made[kind] < kept.total[kind]:
            made = f"{kept.made[kind]:,} of {kept.total[kind]:,}"
            notes.append(f"{made} {unit} were {done} now, the others are as they were")
    if refitted:
        why = "What is fitted on the train rows has changed since the last time, so all shards were encoded anew"
        if run.split.fit_until is not None:
            why += ": rows before split.fit_until came or changed, or a table did"
        elif run.split.by == "time":
            why += "; split.fit_until would keep those that nothing else changes"
        notes.append(why)
    return notes


def table_notes(tables: Tables) -> list[str]:
    """Rows of the tables of items and users that contradict an earlier one of the same key, and do not count."""
    notes = []
    for what, table in (("items", tables.items), ("users", tables.users)):
        if table is not None and table.duplicates:
            same = "key" if table.versions is None else "key and time"
            notes.append(
                f"data.{what}: {table.duplicates:,} row(s) have the {same} of an earlier row and other content; the "
                "earlier one counts"
                + (f". If rows hold from a time on, name its column in data.{what}.valid_from" if same == "key" else "")
            )
    return notes


def boundary_notes(boundaries: TimeSplit, hours: Counter[int], run: Run) -> list[str]:
    """Boundaries that leave all candidates on one side. `hours`: candidates by the hour since 1970."""
    if not hours:
        return []
    first, last = (datetime.fromtimestamp(3600 * hour, UTC) for hour in (min(hours), max(hours) + 1))
    return [
        f"split.{key} {getattr(run.split, key)} lies outside of the log, whose candidates are from "
        f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
        for key, place in boundaries._asdict().items()
        if not first.timestamp() < place.time / 1e6 < last.timestamp()
    ]


def delivery_notes(counts: Mapping[str, int], run: Run) -> list[str]:
    """One line for each thing that was asked for, and for users without a past."""
    notes = []
    if counts.get("repeats"):
        notes.append(f"{counts['repeats']:,} rows were delivered before (data.unique_by) and left out")
    if counts.get("feedback"):
        notes.append(
            f"{counts['feedback']:,} rows of feedback: {counts['feedback_unmatched']:,} belong to no exposure and are "
            f"left out, {counts['feedback_repeated']:,} are not the first of their type for their exposure"
        )
    if counts.get("long_users"):
        notes.append(
            f"{counts['long_users']:,} users have more than data.max_user_events {run.data.max_user_events} rows: "
            f"their {counts['rows_of_long_users_left_out']:,} earliest rows are left out"
        )
    if counts.get("rows_unmapped"):
        notes.append(
            f"{counts['rows_unmapped']:,} rows have a user that data.user_map does not know; they keep their id"
        )
    for split in ("valid", "test"):
        new, users = counts[f"{split}_users_without_earlier_event"], counts[f"{split}_users"]
        if new:
            notes.append(f"{new / users:.1%} of the {users:,} {split} users have no earlier event")
    return notes


def summary(prepared: Prepared, run: Run) -> list[str]:
    """What is said of prepared data that was just made."""
    manifest = prepared.manifest
    counts = manifest.counts
    sizes_text = ", ".join(f"{sum(s.candidates for s in manifest.shards[split]):,} {split}" for split in SPLITS)
    lines = [
        f"Prepared {counts['candidates']:,} candidates ({sizes_text}) of {counts['users']:,} users in "
        f"{counts['requests']:,} requests: {prepared.path}"
    ]
    if counts["rows_quarantined"]:
        lines.append(f"{counts['rows_quarantined']:,} bad rows are in {joined(prepared.path, 'quarantine.parquet')}")
    if not manifest.boundaries and counts["users_with_few_candidates"]:
        lines.append(f"{counts['users_with_few_candidates']:,} users have fewer than 3 candidates: all in train")
    if counts["cut_texts"]:
        lines.append(
            f"{counts['cut_events']:,} events in histories and {counts['cut_candidates']:,} candidates have texts "
            "longer than history.event_tokens or history.candidate_tokens; they were cut"
        )
    lines += collision_notes(manifest.id_collisions)
    lines += delivery_notes(counts, run)
    lines += [
        f"No candidate is in {split}" for split in SPLITS if not any(s.candidates for s in manifest.shards[split])
    ]
    return lines
