"""The two sides of `prepare.py`, each run in a process of its own on the first cores only.

    python benchmarks/prepare_sides.py ours|peer FOLDER

FOLDER holds a log with `config.yaml`, and `settings.json` with what `run_side` was asked for.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from watched import Sample, tell_of_passes, watch

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.progress import track

CORES = 2
STORE_MIB = 300
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "TRANSFORMERS_VERBOSITY": "error",
}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def run_side(
    side: str,
    folder: Path,
    settings: Sequence[str],
    with_ray: bool,
    samples: list[Sample] | None = None,
    cores: int = CORES,
) -> dict[str, Any]:
    """Runs one side, and gives what it reports; `samples`: a list to which its memory over time is added."""
    said = {"settings": list(settings), "with_ray": with_ray, "tell": samples is not None, "cores": cores}
    (folder / "settings.json").write_text(json.dumps(said))
    process = subprocess.Popen([sys.executable, __file__, side, str(folder)], env=os.environ | _QUIET | _ONE_THREAD)
    finish = watch(process.pid) if samples is not None else None
    try:
        if process.wait() != 0:
            raise SystemExit(f"{side} ended with an error; see above")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if finish is not None and samples is not None:
            samples += finish()
    found: dict[str, Any] = json.loads((folder / f"{side}.json").read_text())
    return found


def _ours(folder: Path, run: Run, said: dict[str, Any]) -> dict[str, Any]:
    """`prepare` as `mtrec prepare` calls it, in a Ray session with a CPU for each core."""
    import ray

    from mtrec_ray.data.prepare import prepare

    if said["tell"]:
        tell_of_passes(folder / "passes.jsonl")
    if not said["with_ray"]:
        start = time.perf_counter()
        path = prepare(run, _pool_tasks).path
        return {"seconds": time.perf_counter() - start, "prepared": path}
    store = STORE_MIB * 2**20
    ray.init(
        num_cpus=said["cores"],
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        start = time.perf_counter()
        path = prepare(run).path
        return {"seconds": time.perf_counter() - start, "prepared": path}
    finally:
        ray.shutdown()


def _pool_tasks(
    function: Callable[[Any, Any], Any], items: Sequence[Any], shared: Any, what: str, unit: str
) -> list[Any]:
    """`MapTasks` in as many processes as there are cores."""
    results = []
    with ProcessPoolExecutor(CORES) as pool, track(what, total=len(items), unit=unit) as bar:
        for result in pool.map(function, items, [shared] * len(items)):
            results.append(result)
            bar.advance(1)
    return results


def _peer(folder: Path, run: Run, said: dict[str, Any]) -> dict[str, Any]:
    """The pipeline of `datasets`, with the tokenizer that our side has learnt."""
    import datasets
    from datasets_peer import make_requests

    datasets.disable_progress_bars()
    tokenizer = f"{load_prepared(run).path}/tokenizer"
    start = time.perf_counter()
    made = make_requests(run, str(folder / "out"), tokenizer, CORES)
    seconds = time.perf_counter() - start
    requests = folder / "out" / "requests.arrow"
    with pa.OSFile(str(requests), "wb") as sink, pa.ipc.new_file(sink, made.data.table.schema) as writer:
        writer.write_table(made.data.table)
    return {"seconds": seconds, "requests": str(requests)}


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    said = json.loads((folder / "settings.json").read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: said["cores"]])
    fixed = ["backbone.name=nano", f"data.prepared_dir={folder}/out/prepared"]
    run = config_file.load(f"{folder}/config.yaml", [*fixed, *said["settings"]])
    found = {"ours": _ours, "peer": _peer}[side](folder, run, said)
    (folder / f"{side}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
