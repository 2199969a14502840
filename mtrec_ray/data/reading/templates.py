"""Text templates over the columns of a table, as `"{title} {genres}"`."""

import string
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import ConfigError


def template_columns(template: str, where: str) -> list[str]:
    """Names of the columns in a template; `where`: its dotted config path.

    Raises:
        ConfigError: unbalanced braces, or more than a name inside them.
    """
    return [name for _, name in _pieces(template, where) if name is not None]


def render(template: str | None, rows: int, cells: Callable[[str], pa.Array], where: str) -> list[str]:
    """[rows] texts, "" without a template; empty cells give empty text. `cells`: the text of a column, by its name."""
    if template is None:
        return [""] * rows
    texts: list[pa.Array] = []
    for literal, name in _pieces(template, where):
        texts.append(pa.array([literal] * rows, pa.string()))
        if name is not None:
            texts.append(cells(name))
    joined = pc.binary_join_element_wise(*texts, "", null_handling="replace", null_replacement="")
    rendered: list[str] = pc.utf8_trim_whitespace(joined).to_pylist()
    return rendered


def _pieces(template: str, where: str) -> list[tuple[str, str | None]]:
    """(literal text, name of the column after it)."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{where}: '{template}' is not a template ({error}). Write e.g. \"{{title}}\".") from None
    for _, name, spec, conversion in pieces:
        if name == "" or spec or conversion:
            raise ConfigError(f"{where}: '{template}': only column names may stand in braces, as \"{{title}}\".")
    return [(literal, name) for literal, name, _, _ in pieces]
