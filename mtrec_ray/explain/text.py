"""What `mtrec explain` prints: all there is in a line each, or one part, key or name at length."""

import ast
import difflib
import importlib.util
import inspect
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.explain.keys import Key, all_keys, first_sentence, keys_of
from mtrec_ray.registry import suggest

if TYPE_CHECKING:
    from mtrec_ray.explain.names import Family

LANGUAGES = {
    "features.aggregates": "mtrec_ray.data.features.aggregates",
    "features.matches": "mtrec_ray.data.features.matches",
    "tune.space": "mtrec_ray.search.distributions",
    "tune.scheduler": "mtrec_ray.search.schedulers",
}
"""Keys whose words stand in a table in the docstring of a module."""
WORDS = ("backbone.name", "features.aggregates", "features.matches", "tune.searcher", "tune.space")
"""Keys with a choice, of which their docstring tells, and not their type or a registry alone."""

FILLED = {"tasks.<name>.kind", "towers.kind", "balance.method", "train.metric"} | {
    "tasks.<name>.params",
    "towers.params",
    "balance.params",
}
"""Keys that take the name of something registered, or its parameters."""


def overview() -> str:
    """A line for each part of a config, each key that chooses among words, and each name that a config may give."""
    from mtrec_ray.explain.names import families  # and so torch

    keys = list(all_keys(Run))
    choices = [(key.path, " | ".join(key.choices)) for key in keys if key.choices and key.path not in WORDS]
    choices += [(key.path, first_sentence(key.doc)) for key in keys if key.path in WORDS]
    sections = [
        (
            "Parts of a config: `mtrec explain train` shows the keys of one",
            [(k.path, _of_part(k)) for k in keys_of(Run)],
        ),
        ("Keys with a choice: `mtrec explain tune.scheduler` says what each word means", sorted(choices)),
    ]
    for family in families():
        title = f"{family.title.capitalize()}s, {family.where}: `mtrec explain {next(iter(family.members))}` says more"
        sections.append((title, [(name, first_sentence(named.doc)) for name, named in family.members.items()]))
    return "\n\n".join(f"{title}\n{_listed(rows)}" for title, rows in sections)


def explain(what: str) -> str:
    """A part of the config, one of its keys, a name, or a word that a key takes: `train`, `tasks.params`, `history.lag`
    or `lag`, `ple`, `lora`.

    Raises:
        ConfigError: nothing is called so, with what is called nearly so.
    """
    keys = list(all_keys(Run))
    exact = [key for key in keys if key.is_at(what)]
    if exact:
        return _key_at_length(exact[0])
    parent, _, last = what.rpartition(".")
    above = next((key for key in keys if key.is_at(parent)), None)
    if above is not None and above.part is not None:
        raise ConfigError(f"{parent} has no key '{last}'.{suggest(last, above.part.model_fields)}")
    from mtrec_ray.explain.names import families

    found = [_name_at_length(family, what) for family in families() if what in family.members]
    found += [_key_at_length(key) for key in keys if f".{key.bare}".endswith(f".{what}") or what in key.choices]
    if found:
        return "\n\n".join(found)
    known = {name for family in families() for name in family.members}
    known |= {word for key in keys for word in (key.bare, key.bare.rpartition(".")[2], *key.choices)}
    near = difflib.get_close_matches(what, sorted(known), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"Neither a key of a config nor a name in it is '{what}'.{hint} `mtrec explain` lists them.")


def table_in(module: str) -> str:
    """The indented block of a module's docstring. The module is not imported, for it might import ray."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return next(block for block in doc.split("\n\n") if block.startswith("    "))


def _of_part(key: Key) -> str:
    return first_sentence(key.doc or (key.part.__doc__ if key.part is not None else ""))


def _key_at_length(key: Key) -> str:
    if key.part is not None:
        doc = [key.doc] if key.doc else []
        text = [key.path, *_paragraphs("\n\n".join([*doc, inspect.getdoc(key.part) or ""]), 2), ""]
        return "\n".join([*text, _keys(keys_of(key.part, key.below))])
    text = [_keys([key])]
    if key.path in LANGUAGES:
        text += ["", textwrap.indent(table_in(LANGUAGES[key.path]), "  ")]
    if key.path in FILLED:
        from mtrec_ray.explain.names import families

        for family in families():
            if family.where == key.path:
                text += ["", _listed([(name, first_sentence(named.doc)) for name, named in family.members.items()])]
            elif family.params == key.path:
                text += [f"\n{name}\n{params}" for name in family.members if (params := _params(family, name))]
    return "\n".join(text)


def _name_at_length(family: "Family", name: str) -> str:
    doc = "\n".join(_paragraphs(family.members[name].doc, 2))
    params = _params(family, name)
    article = "an" if family.title[0] in "aeiou" else "a"
    return f"{name}: {article} {family.title} ({family.where})\n{doc}" + (
        f"\n\nParameters ({family.params})\n{params}" if params else ""
    )


def _params(family: "Family", name: str) -> str:
    params = family.members[name].params
    return "" if params is None else _keys(keys_of(params))


def _keys(keys: Iterable[Key]) -> str:
    lines = []
    for key in keys:
        standing = "" if key.default is None else f", default {key.default}"
        standing = ", required" if key.required else standing
        lines.append(f"  {key.path}: {key.takes}{standing}" + (f"; `mtrec explain {key.bare}`" if key.part else ""))
        lines += _paragraphs(key.doc or (first_sentence(key.part.__doc__) if key.part is not None else ""), 6)
    return "\n".join(lines)


def _listed(rows: Sequence[tuple[str, str]]) -> str:
    column = max(len(name) for name, _ in rows) + 4
    return "\n".join(
        textwrap.fill(text, _width(), initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
        or f"  {name}"
        for name, text in rows
    )


def _paragraphs(doc: str, indent: int) -> list[str]:
    """Filled, but for tables and formulas, which are indented in the docstring."""
    lines: list[str] = []
    for paragraph in filter(None, doc.split("\n\n")):
        lines += [""] if lines else []
        if paragraph.startswith(" ") or "\n " in paragraph:
            lines.append(textwrap.indent(paragraph, " " * indent))
        else:
            filled = textwrap.fill(" ".join(paragraph.split()), _width() - indent, break_on_hyphens=False)
            lines.append(textwrap.indent(filled, " " * indent))
    return lines


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns
