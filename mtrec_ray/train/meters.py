"""What a run says of itself while it trains: means and rates since the last log, as lines of `metrics.jsonl`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtrec_ray.data.filesystem import is_url, open_fs, write_atomic
from mtrec_ray.engine.base import Engine
from mtrec_ray.multitask.balancing.balancer import cosines
from mtrec_ray.train.loop import StepResult


class Meter:
    """Keeps the results of steps, on the device; `flush` reduces over ranks and starts again."""

    def __init__(self, task_names: list[str], balanced: bool) -> None:
        """`balanced`: whether the tasks' weights change, and so are worth a line."""
        self._names = task_names
        self._balanced = balanced
        self._steps: list[StepResult] = []
        self.totals = torch.zeros(4, dtype=torch.float64)
        """Of the whole run: candidates and tokens over all ranks; seconds and waited seconds, mean of the ranks."""

    @property
    def pending(self) -> bool:
        return bool(self._steps)

    def add(self, result: StepResult) -> None:
        self._steps.append(result)

    def flush(self, engine: Engine) -> dict[str, float]:
        """Means since the last flush, for a log; every rank calls it after the same step."""
        steps, self._steps = self._steps, []
        work = torch.tensor([[s.candidates, s.tokens, s.seconds, s.wait_seconds] for s in steps], dtype=torch.float64)
        work = engine.sum_over_ranks(work.sum(0).to(engine.device)).cpu()
        work[2:] /= engine.world_size
        self.totals += work
        counts = torch.stack([s.counts for s in steps])
        sums = (torch.stack([s.task_loss for s in steps]) * counts).nan_to_num(0.0).sum(0)
        means = (sums / counts.sum(0)).tolist()
        balance = torch.stack([s.balance for s in steps]).mean(0).tolist()
        return {
            "loss": float(torch.stack([s.loss for s in steps]).mean()),
            "lr_scale": steps[-1].lr_scale,
            "grad_norm": float(steps[-1].grad_norm),
            **{f"loss/{name}": mean for name, mean in zip(self._names, means, strict=True) if mean == mean},
            **(
                {f"balance/{name}": weight for name, weight in zip(self._names, balance, strict=True)}
                if self._balanced
                else {}
            ),
            **self._conflict(steps),
            **self._steered(steps),
            **_gates(engine),
            **rates(work),
        }

    def _conflict(self, steps: list[StepResult]) -> dict[str, float]:
        """Cosines between the tasks' gradients over all steps in which they were measured."""
        measured = [s.gramian for s in steps if s.gramian is not None]
        if not measured:
            return {}
        found = cosines(torch.stack(measured).sum(0))
        return {f"cosine/{self._names[i]}~{self._names[j]}": value for (i, j), value in found.items()}

    def _steered(self, steps: list[StepResult]) -> dict[str, float]:
        """Where validation rows move the weights: the last factors, and the mean cosines by which they moved."""
        factors = steps[-1].factors
        looks = [s.agreement for s in steps if s.agreement is not None]
        named = {} if factors is None else {"factor": factors}
        if looks:
            named["agreement"] = torch.stack(looks).nanmean(0)
        return {
            f"{what}/{name}": value
            for what, values in named.items()
            for name, value in zip(self._names, values.tolist(), strict=True)
            if value == value
        }


def _gates(engine: Engine) -> dict[str, float]:
    """Mean use of each expert in the last forward pass of training, over all ranks."""
    towers: Any = engine.model.towers
    found: dict[str, float] = {}
    for name, sums in towers.gates().items():
        sums = engine.sum_over_ranks(sums.double())
        shares = (sums / sums.sum()).nan_to_num(0.0).tolist()
        found |= {f"gate/{name}/{expert}": share for expert, share in enumerate(shares)}
    return found


def rates(work: Tensor) -> dict[str, float]:
    """`candidates_per_s`, `tokens_per_s` over all ranks, and the share of the time that was spent waiting for data."""
    candidates, tokens, seconds, waited = work.tolist()
    seconds = max(seconds, 1e-9)
    return {
        "candidates_per_s": candidates / seconds,
        "tokens_per_s": tokens / seconds,
        "ingest_wait_share": waited / seconds,
    }


class MetricsLog:
    """`metrics.jsonl` in the run folder, local or a URL; made by rank 0 alone.

    A resumed run goes on after its checkpoint: later lines, of steps that will be done again, are dropped.
    """

    def __init__(self, run_folder: str, step: int) -> None:
        self._folder = run_folder
        self._filesystem, root = open_fs(run_folder)
        self._path = f"{root}/metrics.jsonl"
        self._lines = [line for line in self._existing() if json.loads(line)["step"] <= step]
        self._write()

    def add(self, line: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(line))
        if is_url(self._folder):
            self._write()  # object stores cannot append
        else:
            with Path(self._path).open("a", encoding="utf-8") as file:
                file.write(self._lines[-1] + "\n")

    def _existing(self) -> list[str]:
        if self._filesystem.get_file_info(self._path).is_file:
            with self._filesystem.open_input_stream(self._path) as file:
                text: str = file.read().decode()
            return text.splitlines()
        return []

    def _write(self) -> None:
        write_atomic(self._filesystem, self._path, "".join(f"{line}\n" for line in self._lines).encode())
