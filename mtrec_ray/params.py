"""Parameters of registered parts: a free mapping in the config, typed by the part that is chosen."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

P = TypeVar("P", bound=Part)


def check_params(model: type[P], params: Mapping[str, Any], where: str) -> P:
    """`params` as a typed part, with defaults; `where`: the dotted path of the mapping.

    Raises:
        ConfigError: with one line per mistake: dotted path, what was found, what was expected.
    """
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, mistake, model) for mistake in error.errors())) from None


def _explain(where: str, mistake: Any, model: type[Part]) -> str:
    path = ".".join([where, *(str(key) for key in mistake["loc"])])
    if mistake["type"] == "extra_forbidden":
        known = list(model.model_fields)
        tail = suggest(str(mistake["loc"][-1]), known) if known else " There are no parameters here."
        return f"unknown key '{path}'.{tail}"
    if mistake["type"] == "value_error":
        return f"{path}: {mistake['ctx']['error']}."
    return f"'{path}' is {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}."
