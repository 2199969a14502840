"""Label expressions over a log's columns: `rating >= 4`, `click == 1 and dwell_s > 10`, `event in ('like', 'save')`.

Comparison, arithmetic, `and` / `or` / `not`, `in`, parentheses, numbers, strings, column names (in backticks if they
are no plain words) and the functions `isnull log min max clip`. A missing value is NaN and stays NaN, `nan >= 4`
included; only `and` and `or` decide without it where the other side does (`0 and nan` is 0), as in SQL.
Nothing is ever passed to Python's `eval`.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

Values = np.ndarray
"""float64 [rows] with NaN for missing, or object [rows] of str with None for missing."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Values, Values], Values]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: np.where(b == 0, np.nan, a / b),
    ast.FloorDiv: lambda a, b: np.where(b == 0, np.nan, a // b),
    ast.Mod: lambda a, b: np.where(b == 0, np.nan, a % b),
}
_COMPARISON: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_LARGE = 1e300
_ARGUMENTS = {"isnull": (1, 1), "log": (1, 1), "min": (2, 9), "max": (2, 9), "clip": (3, 3)}
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]+)`""")


def evaluate(expression: str, columns: Mapping[str, Values], where: str = "expression") -> Values:
    """float64 [rows]: true is 1, false 0, missing NaN.

    Args:
        columns: numbers as float64 arrays, the columns of `text_columns_of` as object arrays of str or None.
        where: dotted config path, for messages.

    Raises:
        ConfigError: not an expression, an unknown column (with the nearest), text where a number is needed.
    """
    tree, _ = _parse(expression, where)
    rows = len(next(iter(columns.values()), ()))
    with np.errstate(all="ignore"):
        try:
            result = _Evaluator(expression, columns, where).number(tree.body)
        except RecursionError:
            raise ConfigError(f"{where}: '{expression[:80]} ...' is nested too deeply; write it shorter.") from None
    return np.array(np.broadcast_to(result, rows), dtype=np.float64)


def columns_of(expression: str, where: str = "expression") -> list[str]:
    """Names of the columns it reads, in order of appearance."""
    _, names = _parse(expression, where)
    return list(names)


def text_columns_of(expression: str, where: str = "expression") -> set[str]:
    """Those of its columns that are compared with text, and so are read as text; all others are numbers."""
    _, names = _parse(expression, where)
    return {name for name, is_text in names.items() if is_text}


@lru_cache(maxsize=256)
def _parse(expression: str, where: str) -> tuple[ast.Expression, dict[str, bool]]:
    """The checked tree, its names in plain form, and each column with whether it is text."""
    quoted: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        name = f"column_{len(quoted)}_"
        quoted[name] = match[2]
        return name

    try:
        tree = ast.parse(_QUOTED.sub(hide, expression).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = getattr(error, "msg", str(error)) or "it is nested too deeply"
        raise ConfigError(
            f"{where}: '{expression[:200]}' is not an expression ({problem}). Write e.g. `rating >= 4`; a column whose "
            "name is no plain word goes in backticks."
        ) from None
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names: dict[str, bool] = {}
    for node in sorted(
        (node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions),
        key=lambda node: (node.lineno, node.col_offset),
    ):
        node.id = quoted.get(node.id, node.id)
        names.setdefault(node.id, False)
    if not names:
        raise ConfigError(f"{where}: '{expression}' reads no column of the log.")
    names.update(dict.fromkeys(_compared_with_text(tree), True))
    return tree, names


def _compared_with_text(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constants = [leaf for side in sides for leaf in _leaves(side) if isinstance(leaf, ast.Constant)]
            if any(isinstance(constant.value, str) for constant in constants):
                found |= {side.id for side in sides if isinstance(side, ast.Name)}
    return found


def _leaves(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]


class _Evaluator:
    """Walks the tree; every value is an array, or a single number or text."""

    def __init__(self, expression: str, columns: Mapping[str, Values], where: str) -> None:
        self.expression, self.columns, self.where = expression, columns, where

    def error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.where}: in '{self.expression}': {problem}")

    def number(self, node: ast.expr) -> Any:
        value = self.value(node)
        if _is_text(value):
            raise self.error(f"'{ast.unparse(node)}' is text; a number is needed there.")
        return value

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() as number) if abs(number) < _LARGE:
                return np.float64(number)
            case ast.Constant(value=str() as text):
                return text
            case ast.Name(id=name):
                return self.column(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.number(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.number(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _true_where(self.number(operand), lambda x: x == 0)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self.number(left), self.number(right))
            case ast.BoolOp(op=op, values=parts):
                return _combine([self.number(part) for part in parts], isinstance(op, ast.And))
            case ast.Compare():
                return self.comparison(node)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.call(name, arguments)
        raise self.error(
            f"'{ast.unparse(node)}' is not supported; use comparisons, arithmetic, and, or, not, in, "
            f"and the functions {', '.join(_ARGUMENTS)}."
        )

    def column(self, name: str) -> Values:
        if name not in self.columns:
            raise self.error(f"no column '{name}'.{suggest(name, self.columns)}")
        return self.columns[name]

    def comparison(self, node: ast.Compare) -> Any:
        results = []
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                results.append(self.membership(left, right, isinstance(op, ast.In)))
            elif type(op) in _COMPARISON:
                results.append(self.compare(op, self.value(left), self.value(right), node))
            else:
                raise self.error(f"'{ast.unparse(node)}': `is` is not supported; use == or isnull().")
            left = right
        return _combine(results, conjunction=True)

    def membership(self, left: ast.expr, right: ast.expr, wanted: bool) -> Any:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise self.error("`in` needs a list, as `event in ('like', 'save')`.")
        value = self.value(left)
        hits = [self.compare(ast.Eq(), value, self.value(member), left) for member in right.elts]
        found = _combine(hits, conjunction=False)
        return found if wanted else _true_where(found, lambda x: x == 0)

    def compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.expr) -> Any:
        texts = [_is_text(left), _is_text(right)]
        if texts[0] != texts[1]:
            raise self.error(f"'{ast.unparse(node)}' compares text with a number.")
        if not texts[0]:
            missing = np.isnan(left) | np.isnan(right)
            return np.where(missing, np.nan, _COMPARISON[type(op)](left, right))
        if not isinstance(op, ast.Eq | ast.NotEq):
            raise self.error(f"'{ast.unparse(node)}': text can only be compared with == and !=.")
        missing = _is_none(left) | _is_none(right)
        return np.where(missing, np.nan, np.asarray(_COMPARISON[type(op)](left, right), dtype=np.float64))

    def call(self, name: str, arguments: list[ast.expr]) -> Any:
        if name not in _ARGUMENTS:
            raise self.error(f"no function '{name}'.{suggest(name, _ARGUMENTS)}")
        least, most = _ARGUMENTS[name]
        if not least <= len(arguments) <= most:
            raise self.error(f"{name}() takes {least if least == most else f'{least} or more'} arguments.")
        if name == "isnull":
            value = self.value(arguments[0])
            return np.asarray(_is_none(value) if _is_text(value) else np.isnan(value), dtype=np.float64)
        values = [self.number(argument) for argument in arguments]
        if name == "log":
            return np.where(values[0] > 0, np.log(values[0]), np.nan)
        if name == "clip":
            return np.minimum(np.maximum(values[0], values[1]), values[2])
        combine = np.minimum if name == "min" else np.maximum
        result = values[0]
        for value in values[1:]:
            result = combine(result, value)
        return result


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "O")


def _is_none(value: Any) -> Any:
    return np.array([x is None for x in value], dtype=bool) if isinstance(value, np.ndarray) else False


def _true_where(value: Any, test: Callable[[Any], Any]) -> Any:
    return np.where(np.isnan(value), np.nan, test(value))


def _combine(values: list[Any], conjunction: bool) -> Any:
    """Three-valued `and` (or `or`): a value that decides wins over missing ones."""
    decides = np.any(np.broadcast_arrays(*[(v == 0) if conjunction else (v != 0) & ~np.isnan(v) for v in values]), 0)
    unknown = np.any(np.broadcast_arrays(*[np.isnan(v) for v in values]), 0)
    return np.where(decides, float(not conjunction), np.where(unknown, np.nan, float(conjunction)))
