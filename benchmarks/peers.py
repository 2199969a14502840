"""Candidates/s and peak memory against Hugging Face Trainer + PEFT, on the same logs, backbone and machine, in one run.

    python benchmarks/peers.py [--sequences 240] [--json peers.json]

The peer is what one would write with these libraries: AutoModel with PEFT LoRA, a linear head per task on the last
token, masked multi-task loss, and Trainer with batches grouped by length; one sequence per candidate, which is what
our candidate sees: the tokens of its history, then its own. Both sides read text alone, start from the same weights,
adapt the same layers with the same rank, and compute about as many tokens in an optimizer step, in float32 on as many
threads. Each side runs in processes of its own and has the machine to itself in its turns, which alternate; the peer
goes once over its sample of the train candidates. Loading, compiling and first steps are not timed.

Memory: the largest resident set of the training process (libraries included), what it was before the model was built,
and the largest sum over all processes of that side (proportional set size: shared pages are counted once).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from paced_job import train_ours
from paced_trainer import train_peer
from sampled import machine, sample_run
from turns import KEY, SIDES, accept, take_turns, totals, watch_memory

from mtrec_ray.config_file import dump

USERS = 600
TEXT_ALONE = (
    "features.user_dim=0",
    "features.item_dim=0",
    "features.category_dim=0",
    "features.aggregates=[]",
    "features.time=false",
    "data.numbers=[]",
    "data.items.numbers=[]",
    "data.items.categories=[]",
)
QUIET = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=240, help="train candidates that the peer goes over")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn")
    parser.add_argument("--batch-requests", type=int, default=4, help="our requests in an optimizer step")
    parser.add_argument("--peer-batch", type=int, default=8, help="the peer's sequences in a step")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--json", type=Path, default=Path("peers.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # this script runs itself once for each
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == SIDES[0]:
        train_ours(arguments.folder, arguments.port)
    elif arguments.side == SIDES[1]:
        train_peer(arguments.folder, arguments.port)
    else:
        result = compare(arguments)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print_result(result)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts both sides and lets them take turns until the peer has seen its sample."""
    with tempfile.TemporaryDirectory(prefix="mtrec-peers-") as folder:
        make_inputs(folder, arguments)
        with Listener(("localhost", 0), authkey=KEY) as listener:
            port = listener.address[1]
            with started(SIDES[0], folder, port) as ours, started(SIDES[1], folder, port) as peer:
                peaks = watch_memory({SIDES[0]: ours, SIDES[1]: peer})
                connections = accept(listener, [ours, peer])
                turns = take_turns(*(connections[side] for side in SIDES))
                for process in (ours, peer):
                    process.wait(timeout=120)
    sides = {side: totals(turns[side]) | {"peak_pss_mib": peaks[side]} for side in SIDES}
    return {
        "machine": machine(),
        "threads": arguments.threads,
        "peer_batch": arguments.peer_batch,
        "sides": sides,
        "speedup_wall": sides[SIDES[0]]["candidates_per_s_wall"] / sides[SIDES[1]]["candidates_per_s_wall"],
        "speedup_cpu": sides[SIDES[0]]["candidates_per_s_cpu"] / sides[SIDES[1]]["candidates_per_s_cpu"],
        "turns": turns,
    }


def make_inputs(folder: str, arguments: argparse.Namespace) -> None:
    """Logs, prepared data, config, backbone and the peer's settings in `folder`."""
    from mtrec_ray.data.prepare import prepare
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.train.pretrained import untrained_nano

    settings = (
        f"train.batch_requests={arguments.batch_requests}",
        f"cluster.cpus_per_worker={arguments.threads}",
        "train.epochs=1000",
    )
    run = sample_run(folder, USERS, (*TEXT_ALONE, *settings))
    with ray_session(run.cluster):
        prepared = prepare(run)
    Path(folder, "run.yaml").write_text(dump(run))
    untrained_nano(run, prepared.manifest).save_pretrained(f"{folder}/backbone")
    side = {"prepared": prepared.path, **vars(arguments)}
    Path(folder, "side.json").write_text(json.dumps(side, default=str))


@contextmanager
def started(side: str, folder: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """This script as one of the sides; ended with the block whatever happens."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


ROWS = {
    "candidates_per_s_wall": "candidates/s, wall clock",
    "candidates_per_s_cpu": "candidates/s, processor time",
    "tokens_per_candidate": "tokens computed per candidate",
    "candidates": "candidates measured",
    "wall_s": "seconds measured, wall clock",
    "peak_rss_mib": "peak memory of the trainer, MiB",
    "rss_before_mib": "  of it before the model",
    "peak_pss_mib": "peak memory of all processes, MiB",
}


def print_result(result: dict[str, Any]) -> None:
    print(f"\n{result['machine']}; {result['threads']} thread each; the peer takes {result['peer_batch']} a step")
    print(f"{'':<36}{SIDES[0]:>16}{SIDES[1]:>16}{'ours / peer':>14}")
    for key, name in ROWS.items():
        ours, peer = (result["sides"][side][key] for side in SIDES)
        print(f"{name:<36}{ours:>16.1f}{peer:>16.1f}{ours / peer:>14.2f}")


if __name__ == "__main__":
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    main()
