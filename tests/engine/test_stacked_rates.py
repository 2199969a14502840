"""A trial in a stack has the optimizer and the rates that it has alone."""

from pathlib import Path

import pytest

from mtrec_ray.config import Run
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.train.building import adapt
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.worker import fit
from tests.batches import make_manifest
from tests.train.test_stack import Stacked, data_of, frozen_model, run_of, same_losses, same_weights

pytestmark = pytest.mark.slow


def train_alone(run: Run, folder: Path) -> None:
    def build() -> Backbone:
        backbone = Backbone(frozen_model(run))
        adapt(backbone, run)
        return backbone

    fit(run, make_manifest(), data_of(run), LocalContext(folder), build)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.lora_plus=8", "train.layer_decay=0.5"),
        ("engine.optimizer=sgd", "train.momentum=0.9", "train.lora_plus=8"),
        ("engine.optimizer=adafactor", "train.layer_decay=0.5"),
    ],
)
def test_in_a_stack_as_alone(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    overrides = (*overrides, "train.max_steps=8")
    stacked = Stacked(tmp_path, overrides)
    for number in (0, 1):
        stacked.start(number)
    stacked.join()
    for number in (0, 1):
        folder = tmp_path / f"alone-{number}"
        train_alone(run_of(number, *overrides), folder)
        same_losses(tmp_path / f"{number}", folder)
        same_weights(tmp_path / f"{number}", folder, 1e-4)
