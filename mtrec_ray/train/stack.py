"""Several trainings on one copy of the backbone: each is `train.worker.fit` in a thread, with a slot of the stack.

What is the same for all is the backbone, its precision, and the prepared data. Everything else is a trial's own:
adapters, towers, tables, weights, learning rates, clipping, dropout, batch, seed, length, early stopping. Trials that
read the same batches in step also share the layers below their adapters (`model.stacked`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtrec_ray.config import Run, Stage
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine
from mtrec_ray.engine.stacked import StackedEngine
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.stacked import Part, SlotBackbone, StackedBackbone
from mtrec_ray.progress import say
from mtrec_ray.train.building import adapt
from mtrec_ray.train.joint import Joint
from mtrec_ray.train.worker import Fitted, TrainingData, fit

Report = Callable[[Mapping[str, float], Path | None], None]
"""Takes a trial's metrics and checkpoint folder; may wait, and raises what ends the trial."""


_WAITS = 50
"""Steps by which a trial may be ahead of another and wait for it, so that they read the same batches."""


class TrialContext:
    """`train.context.Context` of one trial: alone in its world; while it reports, the others go on."""

    world_rank, world_size = 0, 1

    def __init__(
        self, run_folder: str, device: torch.device, report: Report, joint: Joint, slot: int, resume: Path | None
    ) -> None:
        self.run_folder, self.device = run_folder, device
        self._report, self._joint, self._slot, self._resume = report, joint, slot, resume

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        yield self._resume

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        with self._joint.away(self._slot):
            self._report(metrics, checkpoint)

    def say(self, text: str) -> None:
        say(text)


class Stack:
    """A backbone and the trials that are on it."""

    def __init__(self, backbone: Backbone | None, manifest: Manifest, run: Run, device: torch.device) -> None:
        """`backbone`: frozen, on `device`; None for `backbone: none`. `run`: what all trials have in common."""
        self.manifest, self.device = manifest, device
        self._bf16 = run.engine.precision == "bf16"
        self._shared = None if backbone is None else StackedBackbone(backbone)
        if self._shared is not None and run.engine.activation_checkpointing:
            self._shared.enable_checkpointing()
        self._joint = Joint(
            {"backward": self._backward, "score": partial(self._read, False), "train": partial(self._read, True)},
            first="backward",
            ready=self._turn,
        )
        self._micro_tokens = run.train.micro_tokens
        self._turns: dict[int, int] = {}
        """When each slot last had its turn, counted in turns"""

    def fit(
        self, slot: int, run: Run, data: TrainingData, folder: str, report: Report, resume: Path | None = None
    ) -> Fitted:
        """Trains one trial in the calling thread, together with those of other threads.

        `slot`: a number that no other trial has at the time. `data`: with sources that all trials share
        (`data.streaming.shared`); `resume`: a checkpoint folder to go on from.

        Raises:
            UserError: as `train.worker.fit`, for this trial alone; what `report` raises, likewise.
        """
        with self._joint.member(slot):
            context = TrialContext(folder, self.device, report, self._joint, slot, resume)
            return fit(run, self.manifest, data, context, partial(self._slot, slot, run), partial(self._open, slot))

    def _slot(self, slot: int, run: Run) -> SlotBackbone | None:
        if self._shared is None:
            return None
        place = self._shared.slot(partial(adapt, run=run))
        place.ask = lambda part: self._joint.ask(slot, "train" if torch.is_grad_enabled() else "score", part)
        return place

    def _open(
        self,
        slot: int,
        run: Run,
        manifest: Manifest,
        device: torch.device,
        build: Callable[[], nn.Module | None],
        stage: Stage,
        catalogue: Catalogue | None,
    ) -> tuple[Engine, None]:
        model = Recommender(build(), manifest, run, catalogue).train_stage(stage)
        together = lambda hidden, gradient: self._joint.ask(slot, "backward", (hidden, gradient))  # noqa: E731
        return StackedEngine(run, model, device, together), None

    def _turn(self, asking: Mapping[int, Any]) -> list[int]:
        """Whose requests are done together.

        In training only so many trials read at a time as leave no more behind for the backward pass than one alone may
        (`train.micro_tokens`, through all layers): a stack needs the memory of one trial, and with batches of that size
        there is nothing to be gained by longer rows. Who has waited longest goes first.
        """
        members = _in_step(asking)
        parts = {slot: part for slot in members if isinstance(part := asking[slot], Part) and part.key is not None}
        if self._shared is None or not parts:
            return members
        chosen: list[int] = []
        for slot in sorted(parts, key=lambda slot: (self._turns.get(slot, 0), slot)):
            kept = self._shared.kept_tokens([parts[s] for s in (*chosen, slot)])
            if not chosen or kept <= self._micro_tokens:
                chosen.append(slot)
        turn = max(self._turns.values(), default=0) + 1
        self._turns |= dict.fromkeys(chosen, turn)
        return chosen

    def _read(self, training: bool, asked: Mapping[int, Part]) -> dict[int, Tensor]:
        assert self._shared is not None
        parts = list(asked.values())
        with (
            torch.set_grad_enabled(training),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            return dict(zip(asked, self._shared.forward(parts, training), strict=True))

    def _backward(self, asked: Mapping[int, tuple[Tensor, Tensor]]) -> Mapping[int, Any]:
        """One backward pass for all: the trials' gradients do not mix, for no trained weight has two of them."""
        hidden, gradients = zip(*asked.values(), strict=True)
        torch.autograd.backward(list(hidden), list(gradients))
        return dict.fromkeys(asked)


def _in_step(asking: Mapping[int, Any]) -> list[int]:
    """Of trials that train, those furthest behind, and those too far ahead to wait for them; else all."""
    steps = {slot: part.key.step for slot, part in asking.items() if isinstance(part, Part) and part.key is not None}
    least = min(steps.values(), default=0)
    return [slot for slot in asking if not 0 < steps.get(slot, least) - least <= _WAITS]
