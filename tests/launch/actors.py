"""What a search has started in Ray, from Ray's own state."""

import ray

CLASSES = {"ResourceTrainable": "TuneTrial", "StackActor": "StackActor", "_Box": "_Box"}
"""Ray's names for them; the first is what Tune makes of `TuneTrial`."""


def processes(alive: bool) -> dict[str, list[int]]:
    """Class -> process ids of its actors that are alive, or of those that no longer are."""
    found: dict[str, list[int]] = {name: [] for name in CLASSES.values()}
    for actor in ray._private.state.actors().values():
        name = CLASSES.get(actor["ActorClassName"].rsplit(".", 1)[-1])
        if name is not None and (actor["State"] != "DEAD") == alive:
            found[name].append(actor["Pid"])
    return found


def any_left() -> bool:
    return any(processes(alive=True).values())
