"""What can be wrong with tasks that match users with items, before anything is trained."""

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.tasks.matching import Retrieval
from mtrec_ray.train.pretrained import NONE


def check_matching(run: Run) -> None:
    """What the config alone tells; plugins have been imported.

    Raises:
        ConfigError: a balance method that weighs gradients where these tasks have none, or an adversary that moves
            inputs which are not theirs.
    """
    matching = [name for name, task in run.tasks.items() if KINDS[task.kind].matches]
    if matching and _looks_at_z(run.balance.method):
        fitting = [name for name in METHODS.names() if not _looks_at_z(name)]
        raise ConfigError(
            f"balance.method: '{run.balance.method}' looks at the tasks' gradients at z, but task '{matching[0]}', of "
            f"kind '{run.tasks[matching[0]].kind}', does not read z: its gradient would be taken for none. Take a "
            f"method that looks at losses, or leave out the task.{suggest('', fitting)}"
        )
    adversarial, has_text = run.regularization.adversarial, run.backbone.name != NONE
    if matching and adversarial.is_on:
        of_features = adversarial.on == "features" or not has_text
        if not of_features:
            raise ConfigError(
                "regularization.adversarial.on is tokens, but the vectors of items are made of the same token "
                f"embeddings, which are no request's, for task '{matching[0]}'; set it to features."
            )
        if all(task.weight == 0 or KINDS[task.kind].matches for task in run.tasks.values()):
            raise ConfigError(
                f"regularization.adversarial moves side features, which no task reads: '{matching[0]}', as all tasks, "
                "matches vectors of users and items. Leave it out."
            )


def check_known_items(run: Run, manifest: Manifest) -> None:
    """What the data tells.

    Raises:
        DataError: nothing to learn from.
        ConfigError: more negatives than items.
    """
    for entry in manifest.tasks:
        task = run.tasks[entry.name]
        kind = KINDS[task.kind]
        if not issubclass(kind, Retrieval):
            continue
        assert manifest.catalogue is not None, "prepared data with tasks that match has a catalogue"
        if not entry.positives["train"]:
            source = f"label: {task.label}" if task.label is not None else f"event: {task.event}"
            raise DataError(
                f"tasks.{entry.name}: no train row has label 1 ({source}), and kind '{task.kind}' learns from these "
                "alone. Correct the label, or move the split's boundaries."
            )
        params = kind.check(entry.name, task.params)
        assert isinstance(params, Retrieval.Params)
        others = manifest.catalogue.in_train - 1
        if params.negatives > others:
            raise ConfigError(
                f"tasks.{entry.name}.params.negatives is {params.negatives}, but there are {others} other items with "
                "train rows; give a smaller number."
            )


def _looks_at_z(method: str) -> bool:
    return METHODS[method].place == "z" or "gramian" in (METHODS[method].reads, METHODS[method].learns)
