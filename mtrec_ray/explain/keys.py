"""The keys of a config by dotted path, each with its type, default and docstring; needs neither torch nor ray."""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from mtrec_ray.config import Part, parse_duration

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true | false", Any: "anything"}
_BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}


@dataclass(frozen=True)
class Key:
    """One key of a part, or the parameter of a named thing."""

    path: str
    """As `tasks.<name>.kind` or `strategy.stages[].until`."""
    takes: str
    """Its type in words, as `whole number ≥ 0`."""
    default: str | None
    """As YAML; None where there is none: the key is `required`, or left out it asks for nothing."""
    required: bool
    doc: str
    choices: tuple[str, ...]
    """The words that it takes, where its type lists them."""
    part: type[Part] | None
    """What its own keys are those of."""
    below: str
    """The path that keys of `part` begin with."""

    @property
    def bare(self) -> str:
        """`tasks.kind`: without the names and places that a config fills in."""
        return re.sub(r"\.<name>|\[\]", "", self.path)

    def is_at(self, path: str) -> bool:
        """Whether `path` is this key's, as `tasks.kind`, `tasks.<name>.kind` or, in some config, `tasks.click.kind`."""
        pattern = re.escape(self.path).replace(re.escape(".<name>"), r"(\.[^.]+)?")
        return re.fullmatch(pattern.replace(re.escape("[]"), r"(\[\d*\]|\.\d+)?"), path) is not None


def keys_of(part: type[Part], prefix: str = "") -> list[Key]:
    """The keys of one part, whose paths begin with `prefix`."""
    docs = _attribute_docs(part)
    return [_key(f"{prefix}{name}", field, docs.get(name, "")) for name, field in part.model_fields.items()]


def all_keys(part: type[Part], prefix: str = "") -> Iterator[Key]:
    """Those of a part and of all parts below it."""
    for key in keys_of(part, prefix):
        yield key
        if key.part is not None:
            yield from all_keys(key.part, key.below)


def first_sentence(doc: str | None) -> str:
    """Of the first paragraph, in one line."""
    paragraph = " ".join(inspect.cleandoc(doc or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.)(?<!e\.g\.)\s+(?=[A-Z`])", paragraph)[0]


def _key(path: str, field: FieldInfo, doc: str) -> Key:
    part = _part_in(field.annotation)
    marks = {dict: f"{path}.<name>.", list: f"{path}[]."}
    return Key(
        path,
        _type(field.annotation, field.metadata),
        None if field.is_required() or field.default is None or _is_part(field.annotation) else _yaml(field.default),
        field.is_required(),
        doc,
        tuple(map(str, _choices(field.annotation))),
        part,
        next((below for kind, below in marks.items() if _has_origin(field.annotation, kind)), f"{path}."),
    )


def _attribute_docs(part: type[Part]) -> dict[str, str]:
    """The string that stands below each field, by its name.

    Not pydantic's `use_attribute_docstrings`: with it every import of the config would read and parse its own source.
    """
    docs: dict[str, str] = {}
    for model in reversed(part.__mro__):
        if not issubclass(model, Part) or model is Part:
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip_longest(definition.body, definition.body[1:]):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            docs.pop(field.target.id, None)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[field.target.id] = inspect.cleandoc(str(below.value.value))
    return docs


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """In words: `whole number ≥ 0`, `list of text`, `sum | mean`, `duration`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*metadata, *arguments[1:]])
    metadata = [each for given in metadata for each in (given.metadata if isinstance(given, FieldInfo) else [given])]
    if any(isinstance(each, BeforeValidator) and each.func is parse_duration for each in metadata):
        text = "duration"
    elif origin in (Union, types.UnionType):
        text = " or ".join(_type(argument) for argument in arguments if argument is not types.NoneType)
    elif origin is Literal:
        text = " | ".join(map(str, arguments))
    elif origin is list:
        text = f"list of {_many(arguments[0])}"
    elif origin is dict:
        text = f"mapping of names to {_many(arguments[1])}"
    elif _is_part(annotation):
        text = "text or mapping" if any(isinstance(each, BeforeValidator) for each in metadata) else "mapping"
    else:
        text = _TYPES[annotation]
    if text == "duration":
        return text  # its bounds are in seconds, and far off
    known = [(*_BOUNDS[type(each)], each) for each in metadata if type(each) in _BOUNDS]
    bounds = ", ".join(f"{sign} {getattr(each, name):g}" for name, sign, each in known)
    return f"{text} {bounds}" if bounds else text


def _many(annotation: Any) -> str:
    return re.sub(r"^(text|whole number|number|mapping)\b|(?<=or )mapping$", r"\g<0>s", _type(annotation))


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Of a `Literal`, also in a list or beside None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found = [_choices(argument) for argument in get_args(annotation)]
    return next((words for words in found if words), ())


def _part_in(annotation: Any) -> type[Part] | None:
    if _is_part(annotation):
        return annotation
    found = (_part_in(argument) for argument in get_args(annotation))
    return next((part for part in found if part is not None), None)


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, Part)


def _has_origin(annotation: Any, kind: type) -> bool:
    if get_origin(annotation) is kind:
        return _part_in(annotation) is not None
    return any(_has_origin(argument, kind) for argument in get_args(annotation))


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        value = [each.model_dump(exclude_unset=True) if isinstance(each, Part) else each for each in value]
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()
