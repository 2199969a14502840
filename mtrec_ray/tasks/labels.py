"""What the labels of any kind are, without torch where the kind is built in."""

from collections.abc import Iterable

from mtrec_ray.labels import BUILT_IN, Labels
from mtrec_ray.registry import import_plugins


def labels_of(kind: str, plugins: Iterable[str] = ()) -> Labels:
    """What the labels of a kind are; only for a guest's kind are its module, and torch, imported.

    Raises:
        ConfigError: no such kind.
    """
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    from mtrec_ray.tasks.kinds import KINDS

    import_plugins(plugins)
    return KINDS[kind].labels
