"""The data of `tests.batches` as different prepared folders know it: which row is whose, and in which order features
and tasks stand. Batches of two worlds with the same requests say the same of the same ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import CategoryEntry, Manifest
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.train.carrying import NamedWeight, named_weights, vocabularies
from mtrec_ray.train.carrying import Path as Named
from tests.batches import ITEMS, TASKS, USERS, make_batch, make_manifest, make_request, make_run

_TASKS = {
    "like": "{label: like}",
    "stars": "{label: stars, kind: regression, parent: like}",
    "kind": "{label: kind, kind: multiclass, classes: 3}",
    "buy": "{label: buy}",
}
_WIDTHS = {"g": 2, "h": 1}
_DOMAINS = ("home", "search")


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(1, count + 1)]


@dataclass(frozen=True)
class World:
    """Ids and values that train knows, in the order of their rows, and the order of numbers, categories and tasks."""

    users: Sequence[str] = tuple(names("u", USERS - 1))
    items: Sequence[str] = tuple(names("i", ITEMS - 1))
    g: Sequence[str] = tuple(names("g", 4))
    h: Sequence[str] = tuple(names("h", 3))
    categories: Sequence[str] = ("g", "h")
    numbers: Sequence[str] = ("a", "b", "c")
    tasks: Sequence[str] = ("like", "stars", "kind")
    domains: Sequence[str] = _DOMAINS
    fingerprint: str = "0" * 16

    def run(self, *overrides: str) -> Run:
        return make_run(f"tasks={{{', '.join(f'{name}: {_TASKS[name]}' for name in self.tasks)}}}", *overrides)

    def manifest(self) -> Manifest:
        base = make_manifest()
        numbers = {entry.name: entry for entry in base.numbers}
        numbers["d"] = base.numbers[0].model_copy(update={"name": "d"})
        entries = {task.name: task for task in TASKS}
        entries["stars"] = entries["stars"].model_copy(update={"parent": "like"})
        entries["buy"] = entries["like"].model_copy(update={"name": "buy"})
        categories, offset = [], 0
        for name in self.categories:
            size = len(getattr(self, name)) + 1
            categories.append(CategoryEntry(name=name, offset=offset, width=_WIDTHS[name], size=size))
            offset += _WIDTHS[name]
        update = {
            "tasks": [entries[name] for name in self.tasks],
            "numbers": [numbers[name].model_copy(update={"index": i}) for i, name in enumerate(self.numbers)],
            "categories": categories,
            "num_users": len(self.users) + 1,
            "num_items": len(self.items) + 1,
            "domains": ["", *self.domains],
            "fingerprint": self.fingerprint,
        }
        return base.model_copy(update=update)

    def write(self, folder: Path) -> Manifest:
        """What `train.start` reads of a prepared folder; behind the known keys stands one too rare for a row."""
        manifest = self.manifest()
        keys = {"user": self.users, "item": self.items, "domain": self.domains, "policy": ()}
        keys |= {f"category {name}": getattr(self, name) for name in self.categories}
        table = {
            "vocabulary": pa.array(list(keys), pa.string()),
            "known": pa.array([len(known) for known in keys.values()], pa.int64()),
            "width": pa.array([1] * len(keys), pa.int64()),
            "keys": pa.array([[*known, "rare"] for known in keys.values()], pa.list_(pa.string())),
        }
        (folder / "fitted").mkdir(parents=True)
        pq.write_table(pa.table(table), folder / "fitted/vocabularies.parquet")
        (folder / "manifest.json").write_text(manifest.to_json())
        return manifest

    def batch(self, requests: Sequence[int], tokens: bool = False) -> Batch:
        """`make_batch` of these requests, with the rows of this world. What is liked is bought, which histories do not
        tell; the number `d` is missing."""
        base = make_batch([make_request(number) for number in requests], tokens)
        own = World()
        at = [slice(0, 2), slice(2, 3)]
        categories = {
            name: _moved(base.categories[:, at[i]], getattr(own, name), getattr(self, name))
            for i, name in enumerate(own.categories)
        }
        return replace(
            base,
            user_index=_moved(base.user_index, own.users, self.users),
            item_index=_moved(base.item_index, own.items, self.items),
            event_item=_moved(base.event_item, own.items, self.items),
            categories=torch.cat([categories[name] for name in self.categories], dim=1),
            numbers=_chosen(base.numbers, own.numbers, self.numbers),
            domain=_moved(base.row_ids % 3, own.domains, self.domains),
            event_feedback=_chosen(base.event_feedback, own.tasks, self.tasks),
            **{
                name: _chosen(
                    getattr(base, name), own.tasks, ["like" if task == "buy" else task for task in self.tasks]
                )
                for name in ("labels", "label_weights", "delays")
            },
        )

    def named(self, folder: Path, model: Recommender) -> dict[Named, NamedWeight]:
        """`train.carrying.named_weights` of a model of this world, whose prepared folder is written."""
        return named_weights(model, self.tasks, vocabularies(str(folder), self.write(folder)))


LATER = World(
    users=("u9", *reversed(names("u", USERS - 1)), "u10"),
    items=tuple(reversed(names("i", ITEMS + 2))),
    g=("g5", "g4", "g1", "g3", "g2"),
    h=("h3", "h1", "h2"),
    categories=("h", "g"),
    numbers=("c", "a", "b"),
    tasks=("kind", "buy", "like", "stars"),
    domains=("cart", "search", "home"),
    fingerprint="1" * 16,
)
"""The same and more, in another order, and a task more."""


def _moved(rows: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    """Rows of a vocabulary as rows of another one; -1 and 0 stay, and so becomes what it does not know."""
    places = [0, *(now.index(key) + 1 if key in now else 0 for key in before)]
    return torch.where(rows > 0, torch.tensor(places)[rows.clamp(min=0)], rows)


def _chosen(columns: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
    absent = columns.new_full((len(columns), 1), torch.nan)
    return torch.cat([columns[:, [before.index(n)]] if n in before else absent for n in now], dim=1)
