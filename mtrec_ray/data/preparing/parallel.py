"""The same function over many items: as a Ray Data job, or in this process."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from mtrec_ray.errors import UserError
from mtrec_ray.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


class MapTasks(Protocol):
    """Calls `function(item, shared)` for every item, in any order; results come in the order of the items."""

    def __call__(
        self, function: Callable[[Any, Any], Result], items: Sequence[Any], shared: Any, what: str, unit: str
    ) -> list[Result]: ...


def serial_tasks(
    function: Callable[[Item, Any], Result], items: Sequence[Item], shared: Any, what: str, unit: str
) -> list[Result]:
    """`MapTasks` in this process."""
    results = []
    with track(what, total=len(items), unit=unit) as bar:
        for item in items:
            results.append(function(item, shared))
            bar.advance(1)
    return results


def ray_tasks(
    function: Callable[[Item, Any], Result], items: Sequence[Item], shared: Any, what: str, unit: str
) -> list[Result]:
    """`MapTasks` as a Ray Data job: one task per item, each with one CPU; a task whose node is lost runs again.

    Raises:
        UserError: the one that a task raised.
    """
    import ray

    reference = ray.put(shared)
    results: dict[int, Result] = {}
    rows = [{"index": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_Task(function, [reference]))
    with track(what, total=len(items), unit=unit) as bar:
        for row in dataset.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, UserError):  # carried as a result: Ray would retry it and wrap it
                raise result
            results[row["index"]] = result
            bar.advance(1)
    return [results[i] for i in range(len(items))]


class _Task:
    def __init__(self, function: Callable[[Any, Any], Any], reference: list[Any]) -> None:
        self.function, self.reference = function, reference

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        try:
            result = self.function(pickle.loads(row["item"]), ray.get(self.reference[0]))
        except UserError as error:
            result = error
        return {"index": row["index"], "result": pickle.dumps(result)}
