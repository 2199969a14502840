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
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from sampled import Enough, machine, sample_run
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump, load

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
SIDES = ("mtrec train", "Trainer + PEFT")
KEY = b"benchmark"


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


def accept(listener: Listener, processes: list[subprocess.Popen[bytes]]) -> dict[str, Connection]:
    """The sides' connections, when both are ready."""
    found: dict[str, Connection] = {}
    watched = threading.Event()

    def give_up() -> None:
        while not watched.wait(1.0):
            if any(process.poll() is not None for process in processes):
                Client(listener.address, authkey=KEY).close()  # wakes up the one that waits
                return

    threading.Thread(target=give_up, daemon=True).start()
    try:
        while len(found) < len(SIDES):
            connection = listener.accept()
            found[connection.recv()] = connection
    except EOFError:
        raise SystemExit("one side ended before it was ready; see above") from None
    finally:
        watched.set()
    return found


def take_turns(ours: Connection, peer: Connection) -> dict[str, list[dict[str, Any]]]:
    """Alternates until the peer is done; the first turn of ours warms up and is dropped."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    one_turn(ours)
    while not (turns[SIDES[1]] and turns[SIDES[1]][-1]["done"]):
        for side, connection in zip(SIDES, (ours, peer), strict=True):
            turns[side].append(one_turn(connection))
            last = turns[side][-1]
            print(f"{side}: {last['candidates']} candidates in {last['wall']:.1f} s", file=sys.stderr, flush=True)
    ours.send(False)
    return turns


def one_turn(connection: Connection) -> dict[str, Any]:
    connection.send(True)
    found: dict[str, Any] = connection.recv()
    return found


def watch_memory(processes: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """The largest proportional set size in MiB of each side's processes, sampled once a second from now on."""
    peaks = dict.fromkeys(processes, 0.0)

    def watch() -> None:
        while True:
            for side, process in processes.items():
                peaks[side] = max(peaks[side], tree_pss(process.pid))
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True).start()
    return peaks


def tree_pss(pid: int) -> float:
    """MiB of a process and all below it; 0 when it has ended."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total / 2**20


class Pace:
    """A side's end: steps are counted, and after each turn it waits until it may go on.

    Processor time is of the whole process, from the end of one turn to the end of the next, so that nothing that a
    side does ahead while it waits is free.
    """

    def __init__(self, side: str, port: int, seconds: float) -> None:
        self._seconds, self._rss_before = seconds, resident_mib("VmRSS")
        self._connection = Client(("localhost", port), authkey=KEY)
        self._side = side

    def ready(self) -> None:
        self._connection.send(self._side)
        self._cpu = time.process_time()
        self._go()

    def step(self, candidates: int, tokens: int) -> bool:
        """Counts an optimizer step; false if it was the last."""
        self._candidates += candidates
        self._tokens += tokens
        if time.perf_counter() - self._start < self._seconds:
            return True
        self.report(done=False)
        return self._go()

    def report(self, done: bool) -> None:
        wall, cpu = time.perf_counter() - self._start, time.process_time()
        self._connection.send(
            {
                "candidates": self._candidates,
                "tokens": self._tokens,
                "wall": wall,
                "cpu": cpu - self._cpu,
                "peak_rss_mib": resident_mib("VmHWM"),
                "rss_before_mib": self._rss_before,
                "done": done,
            }
        )
        self._cpu = cpu

    def _go(self) -> bool:
        go: bool = self._connection.recv()
        self._candidates = self._tokens = 0
        self._start = time.perf_counter()
        return go


def resident_mib(field: str) -> float:
    """`VmRSS` now, or `VmHWM`, the most so far, of this process (unlike `ru_maxrss` without what its parent had)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def train_ours(folder: str, port: int) -> None:
    """The job of `mtrec train` (Ray Data, Ray Train, DeepSpeed), ended when the peer is done."""
    from mtrec_ray.launch.relay import relayed
    from mtrec_ray.launch.runs import RunFolder
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.launch.train import run_training_job

    side = json.loads(Path(folder, "side.json").read_text())
    run = load(f"{folder}/run.yaml")
    run_folder = RunFolder.of(run)
    with ray_session(run.cluster):
        run_folder.open(run, overwrite=False)
        arguments = {"run": run, "prepared": side["prepared"], "run_folder": run_folder.path, "title": ""}
        pacing = {"port": port, "seconds": side["seconds"]}
        with relayed() as relay:
            run_training_job(paced_worker, arguments | pacing, run, run_folder, relay)


def paced_worker(relay: Any, port: int, seconds: float, **arguments: Any) -> None:
    """`launch.worker.train_worker` with a stream of train steps that waits for its turns."""
    import deepspeed  # noqa: F401  # so that what there is before the model holds all libraries

    from mtrec_ray.launch import worker

    pace = Pace(SIDES[0], port, seconds)
    fit = worker.fit

    def paced_fit(run: Run, manifest: Any, data: Any, context: Any, build_backbone: Any) -> Any:
        return fit(run, manifest, replace(data, train=Paced(data.train, pace)), context, build_backbone)

    with patch.object(worker, "fit", paced_fit):
        try:
            worker.train_worker(relay, **arguments)
        except Enough:
            return


class Paced:
    """A stream of train steps, each counted when the next is asked for: then it is done and logged."""

    def __init__(self, stream: Any, pace: Pace) -> None:
        self.order = stream.order
        self._stream, self._pace = stream, pace

    def steps(self, first: int, last: int) -> Iterator[Any]:
        self._pace.ready()
        with closing(self._stream.steps(first, last)) as source:
            for step in source:
                yield step
                candidates = sum(batch.num_candidates for batch in step.batches)
                if not self._pace.step(candidates, sum(len(batch.ids) for batch in step.batches)):
                    raise Enough


class Sequences(torch.utils.data.Dataset[dict[str, Any]]):
    """One sequence per candidate, cut from the prepared requests when it is asked for: a sample of the train split."""

    def __init__(self, prepared: str, count: int) -> None:
        from mtrec_ray.data.streaming.shards import Shards, load_manifest

        self.manifest = load_manifest(prepared)
        shards = Shards(prepared, self.manifest, "train")
        table = shards.rows(np.arange(shards.num_requests))
        self._columns = {
            name: table.column(name).combine_chunks()
            for name in ("history_ids", "history_ends", "candidate_ids", "candidate_ends", "candidate_events", "labels")
        }
        candidates = np.diff(self._columns["candidate_ends"].offsets.to_numpy())
        places = [(request, c) for request, n in enumerate(candidates) for c in range(n)]
        chosen = np.random.default_rng(0).permutation(len(places))[:count]
        self._places = [places[index] for index in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        request, candidate = self._places[index]
        row = {name: column[request].values.to_numpy(zero_copy_only=False) for name, column in self._columns.items()}
        seen, ends = int(row["candidate_events"][candidate]), row["candidate_ends"]
        history = row["history_ids"][: row["history_ends"][seen - 1] if seen else 0]
        own = row["candidate_ids"][ends[candidate - 1] if candidate else 0 : ends[candidate]]
        labels = row["labels"].reshape(len(ends), -1)[candidate]
        return {"input_ids": np.concatenate([history, own]).astype(np.int64), "labels": labels.astype(np.float32)}


def pad(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right padding to the longest of the batch. A decoder's last real token never sees it, so no mask is needed."""
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    ids = [torch.from_numpy(example["input_ids"]) for example in examples]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "last": lengths - 1,
        "labels": torch.from_numpy(np.stack([example["labels"] for example in examples])),
    }


class PeerModel(nn.Module):
    """AutoModel with LoRA, and one linear head per task that reads the last token."""

    def __init__(self, folder: str, tasks: list[Any], weights: dict[str, float], adapter: Any) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        super().__init__()
        config = LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules="all-linear")
        self.backbone = get_peft_model(AutoModel.from_pretrained(folder), config)
        self.heads = nn.ModuleList(nn.Linear(self.backbone.config.hidden_size, 1) for _ in tasks)
        self.tasks, self.weights = tasks, weights

    def forward(self, input_ids: Tensor, last: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        z = hidden[torch.arange(len(last)), last]
        loss = z.new_zeros(())
        for task, head, label in zip(self.tasks, self.heads, labels.T, strict=True):
            observed = ~label.isnan()
            if observed.any():
                loss = loss + self.weights[task.name] * task_loss(task, head(z[observed])[:, 0], label[observed])
        return {"loss": loss}


def task_loss(task: Any, logits: Tensor, labels: Tensor) -> Tensor:
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.mse_loss(logits, (labels - task.mean) / task.std)


def train_peer(folder: str, port: int) -> None:
    """Trainer over the sample of candidates, once."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    side = json.loads(Path(folder, "side.json").read_text())
    torch.set_num_threads(side["threads"])
    run = load(f"{folder}/run.yaml")
    data = Sequences(side["prepared"], side["sequences"])
    pace = Pace(SIDES[1], port, side["seconds"])
    weights = {name: task.weight for name, task in run.tasks.items()}
    model = PeerModel(f"{folder}/backbone", data.manifest.tasks, weights, run.adapter)
    taken: list[Tensor] = []

    class Paces(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.ready()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ids = taken.pop()
            control.should_training_stop |= not pace.step(ids.shape[0], ids.numel())

    class Counting(Trainer):
        def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *more: Any, **named: Any) -> Tensor:
            taken.append(inputs["input_ids"])
            loss: Tensor = super().training_step(model, inputs, *more, **named)
            return loss

    settings = TrainingArguments(
        output_dir=f"{folder}/trainer",
        per_device_train_batch_size=side["peer_batch"],
        train_sampling_strategy="group_by_length",
        num_train_epochs=1,
        learning_rate=run.train.learning_rate.adapters,
        logging_steps=run.train.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    for _ in range(2):  # warms up, as our first turn does
        model(**pad([data[index] for index in range(4)]))["loss"].backward()
    Counting(model, settings, data_collator=pad, train_dataset=data, callbacks=[Paces()]).train()
    pace.report(done=True)


def totals(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Rates over all turns of a side; its memory at the end."""
    candidates, tokens, wall, cpu = (
        sum(turn[name] for turn in turns) for name in ("candidates", "tokens", "wall", "cpu")
    )
    return {
        "candidates": candidates,
        "candidates_per_s_wall": candidates / wall,
        "candidates_per_s_cpu": candidates / cpu,
        "tokens_per_candidate": tokens / candidates,
        "wall_s": wall,
        "cpu_s": cpu,
        "rss_before_mib": turns[-1]["rss_before_mib"],
        "peak_rss_mib": turns[-1]["peak_rss_mib"],
    }


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
