"""Balancing at z, as this package does it, against balancing at the parameters, as the methods' papers write it.

    python benchmarks/proofs/levels.py [--seeds 101 102 103 104 105] [--json levels.json]

A generated log with four tasks, a small decoder with LoRA, the plain engine. The gradient at the parameters is what
comes out of the gradient at z through everything below it, a linear map that differs from row to row, so angles between
tasks at z need not be the angles at the parameters. Two questions:

1. Do the two places see the same conflict? A model trains with the plain sum; every few steps the cosine between each
   pair of tasks is taken at z and over all weights below z (adapters, side features, what joins them), and each
   method's update of those weights is computed with the weights from either place, and compared by its cosine.
2. Does it matter? Each method trains with either place, from the same first weights on the same steps; judged are the
   test AUC of the binary tasks, the last weights of all.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proof import defined, line, parsed, summary
from torch import Tensor

from mtrec_ray import config_file
from mtrec_ray.config import Balance, Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.sample import write_sample
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.engine.base import Engine
from mtrec_ray.evaluate.metrics import auc
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.balancing.balancer import Balancer, cosines, make_method
from mtrec_ray.multitask.balancing.method import Method, Seen
from mtrec_ray.multitask.balancing.point import Probe
from mtrec_ray.multitask.losses import Objective, make_objective
from mtrec_ray.train.building import BackboneBuilder, open_engine
from mtrec_ray.train.evaluation import score
from mtrec_ray.train.loop import Recipe, training_steps
from mtrec_ray.train.schedule import lr_scale

SEEDS = [101, 102, 103, 104, 105]
METHODS = ("pcgrad", "cagrad", "imtl_g", "upgrad")
STEPS, LOOK_EVERY, USERS = 300, 10, 500
CLEAR = 0.1
"""Cosines nearer to 0 have a sign by chance."""
BINARY = ("click", "like", "purchase")


@dataclass(frozen=True)
class Place:
    """A prepared log and the objective on it, with a fresh model for each training."""

    run: Run
    data: Prepared
    objective: Objective

    @classmethod
    def make(cls, folder: Path, seed: int) -> "Place":
        write_sample(str(folder / "sample"), seed=seed, users=USERS, items=300, days=20)
        settings = (
            *("backbone.name=nano", "backbone.width=64", "backbone.layers=2", "backbone.heads=4"),
            *("backbone.pretrained=false", f"data.prepared_dir={folder}/prepared", f"seed={seed}"),
            "features.category_dim=0",  # tables of categories are no parameters, and their rows are stepped one by one
            *("engine.name=plain", "train.batch_requests=8", "train.micro_tokens=1000000", "train.clip_norm=null"),
        )
        run = config_file.load(f"{folder}/sample/config.yaml", settings)
        data = prepare(run, serial_tasks)
        return cls(run, data, make_objective(run, data.manifest))

    def steps(self, split: str, last: int | None = None) -> Iterator[Any]:
        stream = StepStream.local(self.data.path, self.data.manifest, order_settings(self.run, split, 1))
        return stream.steps(0, stream.order.steps_per_epoch if last is None else last)

    def engine(self) -> Engine:
        builder = BackboneBuilder(self.run, self.data.path, self.data.manifest)
        return open_engine(self.run, self.data.manifest, torch.device("cpu"), builder)[0]

    def method(self, name: str) -> Method:
        return make_method(self.run.model_copy(update={"balance": Balance(method=name)}))

    def areas(self, engine: Engine) -> dict[str, float]:
        """Test AUC of each binary task."""
        scores = score(engine, self.steps("test"), self.objective.kinds)
        assert scores is not None
        found = {}
        for task in BINARY:
            labels = scores.labels[:, self.objective.tasks.index(task)]
            seen = ~np.isnan(labels)
            found[task] = defined(auc(labels[seen], scores.scores[task][seen]))
        return found

    def at_parameters(self, engine: Engine, batch: Batch, step: int) -> "TaskGradients":
        engine.model.train()
        scales = self.objective.scales(self.objective.counts(batch))
        sums = self.objective.loss_sums(engine.forward(batch, DropoutKey(self.run.seed, step)), batch)
        return TaskGradients.of(engine, sums * scales, scales)

    def at_z(self, engine: Engine, batch: Batch, step: int) -> Tensor:
        """The Gramian [T, T]."""
        scales = self.objective.scales(self.objective.counts(batch))
        probe = Probe()
        sums = self.objective.loss_sums(engine.forward(batch, DropoutKey(self.run.seed, step), probe), batch)
        return probe.gramian(Objective.loss(sums, scales))


@dataclass(frozen=True)
class TaskGradients:
    """Of each task's weighted loss, by a backward pass each."""

    shared: dict[str, Tensor]
    """Name -> [T, ...] of each weight below z."""
    towers: dict[str, Tensor]
    """Name -> gradient of the plain sum of each weight above z."""
    losses: Tensor
    observed: Tensor

    @classmethod
    def of(cls, engine: Engine, losses: Tensor, scales: Tensor) -> "TaskGradients":
        trained = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
        above = [name for name in trained if name.startswith("towers.")]
        below = [name for name in trained if name not in above]
        towers = torch.autograd.grad(losses.sum(), [trained[name] for name in above], retain_graph=True)
        rows = [
            torch.autograd.grad(loss, [trained[name] for name in below], retain_graph=True, materialize_grads=True)
            for loss in losses
        ]
        shared = {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(below)}
        return cls(shared, dict(zip(above, towers, strict=True)), losses.detach().double(), scales > 0)

    @property
    def gramian(self) -> Tensor:
        flat = torch.cat([gradient.flatten(1) for gradient in self.shared.values()], dim=1).double()
        return flat @ flat.T

    def weights(self, method: Method, step: int, gramian: Tensor) -> Tensor:
        return method.weights(step, Seen(self.losses, self.observed, gramian, torch.ones_like(self.losses)))

    def combined(self, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of each weight below z."""
        return {
            name: torch.tensordot(weights.to(gradient.dtype), gradient, dims=1)
            for name, gradient in self.shared.items()
        }


def main() -> None:
    arguments = parsed(__doc__, SEEDS)
    torch.set_num_threads(1)
    looks: list[dict[str, Any]] = []
    areas: dict[tuple[str, str], dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {"z": [], "parameters": []}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="mtrec-proof-") as folder:
            place = Place.make(Path(folder), seed)
            looks += look(place)
            for method in ("sum", *METHODS):
                for level, train in {"z": train_at_z, "parameters": train_at_parameters}.items():
                    if (method, level) == ("sum", "parameters"):
                        continue
                    engine, start = place.engine(), time.process_time()
                    train(place, engine, method)
                    if method != "sum":
                        seconds[level].append((time.process_time() - start) / STEPS)
                    for task, area in place.areas(engine).items():
                        areas.setdefault((method, level), {}).setdefault(task, []).append(area)
                    engine.close()
                    print(f"seed {seed} {method} at {level}: {areas[method, level]}", flush=True)
    result = conclude(looks, areas, seconds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1))


def train_at_z(place: Place, engine: Engine, method: str) -> None:
    balancer = Balancer(place.method(method), "micro_step", place.objective, engine, conflict=False)
    train, run = place.run.train, place.run
    recipe = Recipe(place.objective, balancer, STEPS, train.warmup, train.decay, run.seed, STEPS)
    for _ in training_steps(engine, place.steps("train", STEPS), recipe):
        pass


def train_at_parameters(place: Place, engine: Engine, name: str) -> None:
    """The same steps; every weight below z gets the tasks' gradients as weighed by their Gramian there."""
    method, train = place.method(name), place.run.train
    trained = dict(engine.model.named_parameters())
    for step, data in enumerate(place.steps("train", STEPS)):
        (batch,) = data.batches
        found = place.at_parameters(engine, batch, step)
        below = found.combined(found.weights(method, step, found.gramian))
        for parameter_name, gradient in {**below, **found.towers}.items():
            trained[parameter_name].grad = gradient
        engine.step(lr_scale(step, STEPS, train.warmup, train.decay, 0))


def look(place: Place) -> list[dict[str, Any]]:
    """What both places say of the same batches and weights, during a training with the plain sum."""
    engine, found = place.engine(), []
    methods = {name: place.method(name) for name in METHODS}
    balancer = Balancer(place.method("sum"), "micro_step", place.objective, engine, conflict=False)
    train = place.run.train
    recipe = Recipe(place.objective, balancer, STEPS, train.warmup, train.decay, place.run.seed, STEPS)
    stepping = training_steps(engine, place.steps("train", STEPS), recipe)
    for step, data in enumerate(place.steps("train", STEPS)):
        if step % LOOK_EVERY == 0:
            (batch,) = data.batches
            at_z, gradients = place.at_z(engine, batch, step), place.at_parameters(engine, batch, step)
            both = gradients.gramian
            pairs, others = cosines(at_z), cosines(both)
            updates = {}
            for name, method in methods.items():
                ours, theirs = gradients.weights(method, step, at_z), gradients.weights(method, step, both)
                updates[name] = float((ours @ both @ theirs) / ((ours @ both @ ours) * (theirs @ both @ theirs)).sqrt())
            found.append({"cosines": [(pairs[p], others[p]) for p in pairs if p in others], "updates": updates})
        next(stepping)
    engine.close()
    return found


def conclude(
    looks: list[dict[str, Any]],
    areas: dict[tuple[str, str], dict[str, list[float]]],
    seconds: dict[str, list[float]],
) -> dict[str, Any]:
    """Prints the tables."""
    z, parameters = np.array([pair for one in looks for pair in one["cosines"]]).T
    clear = np.abs(parameters) > CLEAR
    agreement = {
        "pairs": len(z),
        "correlation of cosines": float(np.corrcoef(z, parameters)[0, 1]),
        "mean |difference| of cosines": float(np.abs(z - parameters).mean()),
        f"same sign where |cosine at the parameters| > {CLEAR}": float(((z > 0) == (parameters > 0))[clear].mean()),
        "share of pairs in conflict at z": float((z < 0).mean()),
        "share of pairs in conflict at the parameters": float((parameters < 0).mean()),
    }
    for name in METHODS:
        agreement[f"cosine of the updates, {name}"] = statistics.mean(one["updates"][name] for one in looks)
    print("\n| the same batches and weights, at both places | |\n|---|---|")
    for what, value in agreement.items():
        print(f"| {what} | {value:.3f} |" if isinstance(value, float) else f"| {what} | {value} |")
    print("\n| test AUC at z less at the parameters | mean | 95 % | by seed |\n|---|---|---|---|")
    differences = {
        f"{method}, {task}": summary(difference(areas[method, "z"][task], areas[method, "parameters"][task]))
        for method in METHODS
        for task in BINARY
    }
    for name, figures in differences.items():
        print(line(name, figures, signed=True))
    print("\n| test AUC at z less the plain sum's | mean | 95 % | by seed |\n|---|---|---|---|")
    gains = {
        f"{method}, {task}": summary(difference(areas[method, "z"][task], areas["sum", "z"][task]))
        for method in METHODS
        for task in BINARY
    }
    for name, figures in gains.items():
        print(line(name, figures, signed=True))
    cost = statistics.median(seconds["parameters"]) / statistics.median(seconds["z"])
    print(f"\na step at the parameters costs {cost:.2f} times one at z (processor time, medians over trainings)")
    return {"agreement": agreement, "z less parameters": differences, "z less sum": gains, "cost": cost}


def difference(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


if __name__ == "__main__":
    main()
