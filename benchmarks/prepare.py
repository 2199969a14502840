"""How fast `prepare` is, how much memory its workers need, and how both grow with the log.

    python benchmarks/prepare.py [--peers] [--memory] [--growth] [--cores] [--quick] [--json prepare.json]

--peers   rows/s against a pipeline of Hugging Face `datasets` (`datasets_peer.py`) on the same generated log, the same
          two cores and the same tokenizer. The tokens of histories and candidates, their lengths and ends, times, row
          ids, labels and the split of every request must be equal, or the benchmark ends with an error. Twice: with
          feedback that has few different words, and with one that is a number and so makes most texts different.
          Processes and modules are there when the clocks start, but for those of our Ray tasks, which import on our
          time. Also ours with what the peer does not do: side features and as-of aggregates, the config's defaults.
--memory  at least 4 GB of CSV (`wide_logs.py`) through Ray with an object store of 300 MB: the resident memory of each
          worker over time, and its peaks by thirds of each pass; `prepare-memory.png` beside the JSON.
--growth  the same log in 1, 2 and 4 times the size, with buckets in proportion; seconds, less those of a tiny log.
--cores   the same log on one core, then twice as many, and so on to all that there are; less a tiny log's seconds.

Without a flag all of them. Every run has a process of its own, and all they write is removed. --quick is to see that it
works, and measures nothing.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prepare_sides import CORES, STORE_MIB, run_side
from sampled import machine
from watched import FLAT, Sample, draw, read_passes, thirds
from wide_logs import write_wide_log

from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.sample import write_sample
from mtrec_ray.data.streaming.shards import load_manifest

BYTES_PER_ROW = 480
ROWS_PER_BUCKET = 40_000
TEXT_ALONE = (
    "features.aggregates=[]",
    "features.time=false",
    "data.numbers=[]",
    "data.items.numbers=[]",
    "data.items.categories=[]",
)
EXTRAS = ("data.numbers=[position]", "data.items.numbers=[price]", "data.items.categories=[topic]")
CLICKS = ("tasks={click: {label: click, feedback_delay: 0s}, like: {label: like, feedback_delay: 0s}}",)
DWELL = ("tasks.dwell={kind: regression, label: log(dwell_s + 1), feedback_delay: 0s}",)
SHARED = ("request_uid", "user", "history_ids", "history_ends", "candidate_ids", "candidate_ends", "candidate_events")
SHARED = (*SHARED, "time", "row_id", "labels", "split")
"""Columns of requests that both sides make."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parts = {"peers": peers, "memory": memory, "growth": growth, "cores": cores}
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--users", type=int, default=40_000, help="of the log of --peers, about 44 rows each")
    parser.add_argument("--rounds", type=int, default=2, help="of all but --memory, medians are shown")
    parser.add_argument("--gigabytes", type=float, default=4.1, help="of the CSV of --memory")
    parser.add_argument("--growth-rows", type=int, default=500_000, help="of the smallest log of --growth, and --cores")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the config for all but --peers")
    parser.add_argument("--quick", action="store_true", help="tiny logs, one round")
    parser.add_argument("--json", type=Path, default=Path("prepare.json"))
    parser.add_argument("--without-ray", action="store_true", help="--peers, --growth: ours in a pool of two processes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.users, arguments.rounds, arguments.gigabytes, arguments.growth_rows = 300, 1, 0.02, 10_000
    chosen = [part for part in parts if getattr(arguments, part)]
    result: dict[str, Any] = {"machine": machine(), "cores": CORES}
    for part in chosen or parts:
        with tempfile.TemporaryDirectory(prefix="mtrec-prepare-") as folder:
            result[part] = parts[part](Path(folder), arguments)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['machine']}; written to {arguments.json}")


def peers(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows/s of both sides on two logs' worth of tasks, and of ours with all it does by default."""
    rows = write_sample(str(folder), users=arguments.users, items=2000, shards=8).rows
    bounds = [f"split.{name}={_START + day * 86_400}" for name, day in (("train_until", 24), ("valid_until", 27))]
    result: dict[str, Any] = {"rows": rows}
    print(
        f"| {rows:,} rows, {CORES} cores | mtrec prepare, rows/s | datasets, rows/s | ours / peer |\n|---|---|---|---|"
    )
    for name, tasks in (("two binary tasks", CLICKS), ("and a number", (*CLICKS, *DWELL))):
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(arguments.rounds):
            settings = [*bounds, *tasks, *TEXT_ALONE, f"data.buckets={_buckets(rows)}"]
            ours = run_side("ours", folder, settings, not arguments.without_ray)
            peer = run_side("peer", folder, settings, True)
            seconds["ours"].append(ours["seconds"])
            seconds["peer"].append(peer["seconds"])
            check_equal(ours["prepared"], peer["requests"])
            shutil.rmtree(folder / "out")
        rates = {side: rows / median(spent) for side, spent in seconds.items()}
        result[name] = {"seconds": seconds, "rows_per_s": rates, "ratio": rates["ours"] / rates["peer"]}
        print(f"| {name} | {rates['ours']:,.0f} | {rates['peer']:,.0f} | {rates['ours'] / rates['peer']:.2f} |")
    extras = [*bounds, *CLICKS, *DWELL, *EXTRAS, f"data.buckets={_buckets(rows)}"]
    spent = run_side("ours", folder, extras, not arguments.without_ray)["seconds"]
    result["with side features and aggregates"] = {"seconds": spent, "rows_per_s": rows / spent}
    print(f"| with side features and aggregates | {rows / spent:,.0f} | | |\n")
    return result


def check_equal(prepared: str, requests: str) -> None:
    """Ends the benchmark unless both sides made the same requests."""
    ours = []
    manifest = load_manifest(prepared)
    for code, split in enumerate(SPLITS):
        for shard in manifest.shards[split]:
            table = pq.read_table(f"{prepared}/{shard.path}", columns=[name for name in SHARED if name != "split"])
            ours.append(table.append_column("split", pa.array([code] * len(table), pa.int8())))
    one, other = (
        table.select(SHARED).sort_by("request_uid").combine_chunks()
        for table in (pa.concat_tables(ours), pa.ipc.open_file(requests).read_all())
    )
    for name in SHARED:
        if not _bits(one[name]).equals(_bits(other[name])):
            raise SystemExit(f"column '{name}' of the requests differs between the sides")
    print(f"{len(one)} requests are equal", file=sys.stderr)


def _bits(column: pa.ChunkedArray) -> pa.Array:
    """Labels as integers: what is not observed is NaN, which equals nothing."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_list(array.type) and pa.types.is_float32(array.type.value_type):
        return pa.ListArray.from_arrays(array.offsets, array.values.fill_null(float("nan")).view(pa.int32()))
    return array


def memory(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Workers' memory while a log passes through that is much larger than it."""
    wanted = arguments.gigabytes * 1e9
    if shutil.disk_usage(folder).free < 3 * wanted:
        raise SystemExit(f"--memory needs {3 * wanted / 1e9:.0f} GB below {folder}; set TMPDIR")
    rows = int(wanted / BYTES_PER_ROW / 5) * 5 + 5
    size = write_wide_log(folder / "log", rows, files=max(int(wanted / 256e6), 2))
    settings = [*_plain(arguments), f"data.buckets={_buckets(rows)}"]
    samples: list[Sample] = []
    found = run_side("ours", folder / "log", settings, True, samples)
    passes = read_passes(folder / "log" / "passes.jsonl")
    rows_of = thirds(samples, passes)
    picture = arguments.json.with_name("prepare-memory.png")
    title = f"prepare of {size / 1e9:.1f} GB of CSV, {CORES} workers, object store of {STORE_MIB} MB"
    draw(samples, passes, picture, title)
    peak = max(max(sample.worker.values(), default=0.0) for sample in samples)
    told = [row["last_over_second"] for row in rows_of if row["last_over_second"] is not None]
    flat = bool(told) and max(told) <= FLAT
    print(f"| {size / 1e9:.2f} GB, {rows:,} rows | s | MiB by third of the pass | last / second |\n|---|---|---|---|")
    for row in rows_of:
        thirds_of = ", ".join(f"{peak:.0f}" for peak in row["peak_mib_by_third"])
        ratio = "too short" if row["last_over_second"] is None else f"{row['last_over_second']:.2f}"
        print(f"| {row['pass']} | {row['seconds']:.0f} | {thirds_of} | {ratio} |")
    verdict = "no pass is long enough to tell" if not told else "flat" if flat else "not flat"
    print(f"\n{found['seconds']:.0f} s, peak {peak:.0f} MiB a worker: {verdict} (at most {FLAT:.2f}); {picture}\n")
    return {
        "bytes": size,
        "rows": rows,
        "buckets": _buckets(rows),
        "seconds": found["seconds"],
        "rows_per_s": rows / found["seconds"],
        "peak_worker_mib": peak,
        "peak_worker_private_mib": max(sample.private for sample in samples),
        "peak_driver_mib": max(sample.driver for sample in samples),
        "passes": rows_of,
        "flat": flat,
    }


def growth(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of 1, 2 and 4 times the rows, less those of next to none."""
    sizes = [1000, *(arguments.growth_rows * times for times in (1, 2, 4))]
    seconds: dict[int, list[float]] = {rows: [] for rows in sizes}
    for rows in sizes:
        write_wide_log(folder / str(rows), rows, files=max(rows // 125_000, 2))
    for _ in range(arguments.rounds):
        for rows in sizes:
            settings = [*_plain(arguments), f"data.buckets={_buckets(rows)}"]
            seconds[rows].append(run_side("ours", folder / str(rows), settings, not arguments.without_ray)["seconds"])
            shutil.rmtree(folder / str(rows) / "out")
    start, *spent = (median(seconds[rows]) for rows in sizes)
    ratios = [(b - start) / (a - start) for a, b in pairwise(spent)]
    print(f"| rows | s | s less {start:.1f} s of a tiny log | over the last |\n|---|---|---|---|")
    for rows, total, ratio in zip(sizes[1:], spent, ["", *(f"{ratio:.2f}" for ratio in ratios)], strict=True):
        print(f"| {rows:,} | {total:.1f} | {total - start:.1f} | {ratio} |")
    print()
    return {"seconds": {str(rows): times for rows, times in seconds.items()}, "start_s": start, "ratios": ratios}


def cores(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds on 1, 2, 4, ... cores, less those of next to none."""
    sizes, most = (1000, 2 * arguments.growth_rows), len(os.sched_getaffinity(0))
    for rows in sizes:
        write_wide_log(folder / str(rows), rows, files=max(rows // 125_000, 2))
    spent: dict[int, float] = {}
    print(f"| cores | s of {sizes[1]:,} rows, less a tiny log's | one core / so many |\n|---|---|---|")
    for count in [2**k for k in range(most.bit_length()) if 2**k <= most]:
        medians = []
        for rows in sizes:
            settings, times = [*_plain(arguments), f"data.buckets={max(_buckets(rows), most)}"], []
            for _ in range(arguments.rounds):
                times.append(run_side("ours", folder / str(rows), settings, True, cores=count)["seconds"])
                shutil.rmtree(folder / str(rows) / "out")
            medians.append(median(times))
        spent[count] = medians[1] - medians[0]
        print(f"| {count} | {spent[count]:.1f} | {spent[1] / spent[count]:.2f} |")
    print()
    return {"seconds": spent}


_START = 1_704_067_200
"""When the logs of `write_sample` begin, seconds since 1970."""


def _plain(arguments: argparse.Namespace) -> list[str]:
    return ["features.aggregates=[]", "features.time=false", *arguments.set]


def _buckets(rows: int) -> int:
    return max(rows // ROWS_PER_BUCKET, CORES)


if __name__ == "__main__":
    main()
