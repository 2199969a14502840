"""Reads, overrides, checks and writes the YAML of a run; every message names the dotted path.

`--set a.b=c` and a sampled value of a search take the same way: `override`, then one validation.
"""

import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mtrec_ray.config import RESOLVED, Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

_LONGEST = 200
"""Characters of a value in a message."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML without silent overwriting: a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key}' is given twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; everybody means the number.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
# And it reads on, off, yes and no as truth values; here they are words, as in `packing: off`. Dates stay text.
_BOOL, _DATE = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
for _first, _resolvers in _UniqueKeys.yaml_implicit_resolvers.items():
    _UniqueKeys.yaml_implicit_resolvers[_first] = [entry for entry in _resolvers if entry[0] not in (_BOOL, _DATE)]
_UniqueKeys.add_implicit_resolver(_BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load(path: str | Path, overrides: Iterable[str] = ()) -> Run:
    """The checked config of `path` with `overrides` (`dotted.path=value`, value in YAML) applied.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest valid one) or a value out of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the config '{path}': {error.strerror}. `mtrec init LOGS` writes one."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config '{path}' is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    return parse(text, overrides, source=str(path))


def parse(text: str, overrides: Iterable[str] = (), source: str = "config") -> Run:
    """`load` for a text that is already in memory."""
    tree = _read_yaml(text, source)
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected a mapping of config keys, found {type(tree).__name__}.")
    for assignment in overrides:
        dotted, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected dotted.path=value.")
        override(tree, dotted.strip(), _read_yaml(value, f"--set {dotted}"))
    return validate(tree, source)


def override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets `dotted` in a nested dictionary; parts that are absent or given in short form are opened."""
    *parents, last = dotted.split(".")
    for key in parents:
        child = tree.get(key)
        if not isinstance(child, dict):
            child = {"name": child} if key == "backbone" and isinstance(child, str) else {}
            tree[key] = child
        tree = child
    tree[last] = value


def validate(tree: Mapping[str, Any], source: str = "config", resolved: bool = False) -> Run:
    """The typed config of a nested dictionary.

    `resolved`: it is a checked config with values of a search in it, where some may be idle; a user's own is refused.

    Raises:
        ConfigError: with one line per mistake.
    """
    try:
        return Run.model_validate(tree, context={RESOLVED} if resolved else None)
    except ValidationError as error:
        lines = [_explain(mistake) for mistake in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def dump(run: Run) -> str:
    """The resolved config, every default written out, as YAML that `parse` reads back to the same config."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also numbers and nestings beyond Python's
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _explain(mistake: Any) -> str:
    """One pydantic error as one line: dotted path, what was found, what was expected, the remedy."""
    path = [str(key) for key in mistake["loc"]]
    dotted = ".".join(path)
    if mistake["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'.{suggest(path[-1], _known_keys(path[:-1]))}"
    if mistake["type"] == "missing":
        return f"'{dotted}' is required."
    if mistake["type"] == "value_error":
        return f"{dotted + ': ' if dotted else ''}{mistake['ctx']['error']}."
    if mistake["type"] in ("dict_type", "model_type"):
        mistake = mistake | {"msg": "Expected a mapping, `key: value` in each line"}
    found = repr(mistake["input"])
    found = found if len(found) <= _LONGEST else f"{found[:_LONGEST]} ..."
    return f"'{dotted}' is {found}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}."


def _known_keys(path: list[str]) -> list[str]:
    model: Any = Run
    for key in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = _inner(model.model_fields[key].annotation) if key in model.model_fields else model
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """The config part inside `list[...]`, `dict[str, ...]`, `... | None` or `Annotated[...]`."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation
    for argument in reversed(typing.get_args(annotation)):
        found = _inner(argument) if not isinstance(argument, types.NoneType) else None
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None
