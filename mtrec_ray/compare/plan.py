"""What a comparison trains: each task alone, and all together in several ways, each with the same seeds.

A task is learned alone by setting every other weight to 0, which is the same as leaving the others out of the loss.
Data, features and histories stay as they are, so it is the objective that is compared, and nothing else. Free of Ray.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrec_ray.config import Adaptive, Adversarial, Balance, Compare, JointMethod, Run, Tune
from mtrec_ray.config_file import override, validate
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train.checks import check_parts

LOGS = "what the logs say is prepared once, and all are measured on the same rows"
FIXED = {
    "name": "each training has its own name",
    "seed": "compare.seeds says with which seeds everything is trained",
    "plugins": "they are imported once",
    "data": LOGS,
    "split": LOGS,
    "evaluate": "all trainings are measured in the same way",
    "cluster": "all trainings run one after the other on the same workers",
    "tune": "it is for `mtrec tune`",
    "compare": "it is the comparison itself",
}
"""Parts of the config in which variants do not differ, with the reason."""


@dataclass(frozen=True)
class Variant:
    """One thing to train, once with each seed."""

    name: str
    slug: str
    """What the names of its runs' folders open with."""
    task: str | None
    """The task that is learned alone; None: all are learned together."""
    values: dict[str, Any]
    """Dotted path -> value, where it differs from the config."""
    run: Run
    """Its config, but for seed, name and storage."""


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison trains."""

    run: Run
    metrics: dict[str, str]
    """Compared task -> its main metric."""
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    """First each task alone, then the joint ones."""

    @property
    def joint(self) -> list[Variant]:
        return [variant for variant in self.variants if variant.task is None]

    def alone(self, task: str) -> Variant:
        return next(variant for variant in self.variants if variant.task == task)

    def trainings(self) -> Iterator[tuple[Variant, int]]:
        """In their order: seed by seed, so that what was interrupted is a whole comparison of fewer seeds."""
        return ((variant, seed) for seed in self.seeds for variant in self.variants)

    def run_of(self, variant: Variant, seed: int) -> Run:
        """The config of one training, as a run of its own in the comparison's folder.

        The first joint training alone computes the baselines, which are the same for all.
        """
        storage = f"{self.run.cluster.storage.rstrip('/')}/{self.run.name}"
        first = (variant.slug, seed) == (self.joint[0].slug, self.seeds[0])
        evaluate = self.run.evaluate if first else self.run.evaluate.model_copy(update={"baselines": []})
        cluster = self.run.cluster.model_copy(update={"storage": storage})
        own = {"name": folder_name(variant.slug, seed), "seed": seed, "evaluate": evaluate, "cluster": cluster}
        return variant.run.model_copy(update=own)


def folder_name(slug: str, seed: int) -> str:
    """`sum-seed0`: below the comparison's folder."""
    return f"{slug}-seed{seed}"


def make_plan(run: Run) -> Plan:
    """Everything that `run.compare` asks for, checked before anything starts; imports the run's plugins.

    Raises:
        ConfigError: fewer than two tasks or no joint training, an unknown method, metric or path, a value that the
            config does not take, a variant on other data.
    """
    check_parts(run)
    metrics = _metrics(run)
    given = run.compare.seeds
    seeds = tuple(given if isinstance(given, list) else range(run.seed, run.seed + given))
    joint = [*(_by_method(run, method) for method in run.compare.methods), *_named(run)]
    if not joint:
        raise ConfigError(
            "nothing to compare: compare.methods and compare.variants are empty; list one way to learn the tasks "
            "together, as compare.methods: [sum]."
        )
    variants = [*(_alone(run, task, metric) for task, metric in metrics.items()), *joint]
    _check_folders(variants)
    return Plan(run, metrics, seeds, tuple(variants))


def _metrics(run: Run) -> dict[str, str]:
    """The compared tasks, which are those that are learned from labels, with their main metrics."""
    labelled = [name for name, task in run.tasks.items() if KINDS[task.kind].labels != "none"]
    compared = [name for name in labelled if run.tasks[name].weight > 0]
    if len(compared) < 2:
        unused = [f"'{name}' has weight 0" for name in labelled if name not in compared]
        why = f"; {', '.join(unused)}" if unused else ""
        raise ConfigError(
            f"nothing to compare: the only task that is learned is {', '.join(compared) or 'none'}{why}. Learning "
            "together takes two tasks with labels and a weight above 0."
        )
    for task in run.compare.metrics:
        if task not in compared:
            raise ConfigError(f"compare.metrics: '{task}' is no task that is compared.{suggest(task, compared)}")
    return {name: _metric(run, name) for name in compared}


def _metric(run: Run, task: str) -> str:
    known = list(KINDS[run.tasks[task].kind].metrics)
    chosen = run.compare.metrics.get(task, known[0])
    if chosen not in known:
        raise ConfigError(
            f"compare.metrics.{task}: '{chosen}' is no metric of kind '{run.tasks[task].kind}' by which a training "
            f"can be judged.{suggest(chosen, known)}"
        )
    return chosen


def _alone(run: Run, task: str, metric: str) -> Variant:
    """The task without the others; its own metric, and guards of its own, choose the checkpoint."""
    others = [name for name, found in run.tasks.items() if name != task and found.weight > 0]
    tasks = {
        name: found.model_copy(update={"weight": 0.0}) if name in others else found for name, found in run.tasks.items()
    }
    values = {f"tasks.{name}.weight": 0.0 for name in others} | {"train.metric": f"{task}/{metric}"}
    guards = {name: guard for name, guard in run.train.guards.items() if name.rpartition("/")[0] == task}
    own = {
        "tasks": tasks,
        "train": run.train.model_copy(update={"metric": values["train.metric"], "guards": guards}),
        "balance": Balance(conflict=False),  # one task is never in conflict,
        "strategy": run.strategy.model_copy(update={"tasks": "joint", "adaptive": Adaptive()}),  # and takes no turns
    }
    if KINDS[run.tasks[task].kind].matches:  # it reads nothing that an adversary moves
        own["regularization"] = run.regularization.model_copy(update={"adversarial": Adversarial()})
    place = list(run.tasks).index(task)
    slug = f"alone-{_slug(task) or f'task{place}'}"
    alone = run.model_copy(update={"tune": Tune(), "compare": Compare(), **own})
    return Variant(f"{task} alone", slug, task, values, alone)


def _by_method(run: Run, method: JointMethod) -> Variant:
    scope = {"balance.scope": method.scope} if method.scope else {}
    values = {"balance.method": method.method, "balance.params": dict(method.params)} | scope
    parts = [method.method, *(f"{key}={value}" for key, value in method.params.items()), *filter(None, [method.scope])]
    return _joint(run, " ".join(parts), values, "compare.methods")


def _named(run: Run) -> Iterator[Variant]:
    for name, values in run.compare.variants.items():
        where = f"compare.variants.{name}"
        if not values:
            raise ConfigError(f"{where} is empty; give the values in which it differs, as {{towers.z_dim: 64}}.")
        for path in values:
            _check_path(run, where, path)
        yield _joint(run, name, values, where)


def _check_path(run: Run, where: str, path: str) -> None:
    """What a mapping with free keys, or the comparison itself, would take and `validate` could not refuse."""
    part, *rest = path.split(".")
    if part in FIXED:
        raise ConfigError(f"{where}: '{path}' is the same for all trainings: {FIXED[part]}.")
    if path.endswith(".params.exclude_seen"):
        raise ConfigError(f"{where}: '{path}' is the same for all trainings: it says which items are ranked.")
    if part == "tasks" and rest and rest[0] not in run.tasks:
        raise ConfigError(f"{where}: '{path}': there is no task '{rest[0]}'.{suggest(rest[0], run.tasks)}")


def _joint(run: Run, name: str, values: Mapping[str, Any], where: str) -> Variant:
    tree = run.model_dump(mode="json", exclude={"tune", "compare"})
    for path, value in values.items():
        override(tree, path, value)
    changed = validate(tree, where)
    try:
        check_parts(changed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if settings(changed) != settings(run):
        raise ConfigError(
            f"{where} changes the prepared data, which all trainings share: they are measured on the same rows, and "
            "differ in how they learn. Compare it in a comparison of its own, with --set."
        )
    if changed.train.start_from not in (None, run.train.start_from):
        raise ConfigError(
            f"{where}: train.start_from is {changed.train.start_from!r}, and a way to learn may start from what all "
            f"start from, {run.train.start_from!r}, or from nothing. Set it for all with --set, or to null here."
        )
    slug = _slug(name)
    if not slug:
        raise ConfigError(f"{where}: the name needs a letter or a digit, for it becomes the name of a folder.")
    return Variant(name, slug, None, dict(values), changed)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-_.")


def _check_folders(variants: Sequence[Variant]) -> None:
    """Two of one name, or of names that differ in case or in characters that no folder has, would be one run."""
    seen: dict[str, str] = {}
    for variant in variants:
        key = variant.slug.lower()
        if key in seen:
            raise ConfigError(
                f"compare: '{seen[key]}' and '{variant.name}' would share the folder {variant.slug}; leave one out, or "
                "give it another name (under compare.variants)."
            )
        seen[key] = variant.name
