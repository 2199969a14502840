import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.reading.expressions import columns_of, evaluate, text_columns_of
from mtrec_ray.errors import ConfigError

NAN = float("nan")


def value(expression: str, **columns: object) -> float:
    """The expression for one row."""
    arrays = {
        name: np.array([cell], dtype=object if isinstance(cell, str | None) else np.float64)
        for name, cell in columns.items()
    }
    (result,) = evaluate(expression, arrays)
    return float(result)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rating >= 4", 1),
        ("rating < 4", 0),
        ("3 < rating <= 4.5", 1),
        ("not rating >= 4", 0),
        ("rating == 4.5 and click == 0", 1),
        ("click or rating > 5", 0),
        ("(rating + 1) * 2 - click / 2", 11),
        ("-rating // 1", -5),
        ("rating % 2", 0.5),
        ("rating in (1, 4.5)", 1),
        ("rating not in [1, 4.5]", 0),
        ("min(rating, 3) + max(click, 2, 1)", 5),
        ("clip(rating, 0, 4)", 4),
        ("log(rating + click)", math.log(4.5)),
        ("rating / click", NAN),
        ("log(click)", NAN),
        ("dwell > 3", NAN),
        ("not dwell", NAN),
        ("dwell > 3 and click", 0),
        ("dwell > 3 and rating", NAN),
        ("dwell > 3 or rating", 1),
        ("dwell in (1, 2)", NAN),
        ("min(dwell, 1)", NAN),
        ("isnull(dwell) + isnull(rating)", 1),
        ("kind == 'like'", 1),
        ("kind != 'like'", 0),
        ('kind in ("save", "like")', 1),
        ("lost == 'like'", NAN),
        ("lost not in ('like', 'save')", NAN),
        ("isnull(lost)", 1),
    ],
)
def test_value(expression: str, expected: float) -> None:
    found = value(expression, rating=4.5, click=0.0, dwell=NAN, kind="like", lost=None)
    np.testing.assert_equal(found, expected)


def test_backticks_name_any_column() -> None:
    columns = {"user rating": np.array([4.0, 1.0]), "from": np.array([0.0, 5.0])}
    assert evaluate("`user rating` > `from`", columns).tolist() == [1, 0]
    assert columns_of("`user rating` > `from` + a") == ["user rating", "from", "a"]
    assert value("kind == 'a`b`c'", kind="a`b`c") == 1


def test_columns_compared_with_text_are_text() -> None:
    expression = "event in ('like', 'save') or kind == 'x' or rating > 3"
    assert columns_of(expression) == ["event", "kind", "rating"]
    assert text_columns_of(expression) == {"event", "kind"}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ratin >= 4", "no column 'ratin'. Did you mean 'rating'? Known: kind, rating."),
        ("rating >=", "is not an expression"),
        ("", "is not an expression"),
        ("3 > 2", "reads no column"),
        ("rating.real", "is not supported"),
        ("__import__('os').system(rating)", "is not supported"),
        ("open(rating)", "no function 'open'"),
        ("log(rating, 2)", "log() takes 1 arguments"),
        ("kind > 'a'", "only be compared with == and !="),
        ("(rating + 0) == 'a'", "compares text with a number"),
        ("kind == 'a' and kind", "'kind' is text"),
        ("rating is 4", "`is` is not supported"),
        ("rating in rating", "`in` needs a list"),
    ],
)
def test_mistakes_are_explained(expression: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(expression, {"rating": np.ones(1), "kind": np.array(["a"], object)}, "tasks.like.label")
    assert str(caught.value).startswith("tasks.like.label: ")
    assert message in str(caught.value)


numbers = st.one_of(st.just(NAN), st.floats(-100, 100))


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
)
def test_comparison_is_pythons_except_for_missing(rows: list[tuple[float, float]], sign: str) -> None:
    python = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}[sign]
    a, b = np.array(rows).T
    expected = [NAN if math.isnan(x + y) else float(getattr(operator, python)(x, y)) for x, y in rows]
    np.testing.assert_equal(evaluate(f"a {sign} b", {"a": a, "b": b}), expected)


@given(*[st.lists(numbers, min_size=5, max_size=5) for _ in range(3)])
def test_logic_laws_hold_with_missing_values(x: list[float], y: list[float], z: list[float]) -> None:
    columns = {"a": np.array(x), "b": np.array(y), "c": np.array(z)}

    def same(left: str, right: str) -> None:
        np.testing.assert_equal(evaluate(left, columns), evaluate(right, columns))

    same("not (a > 0 and b > 0)", "not a > 0 or not b > 0")
    same("a > 0 and (b > 0 or c > 0)", "(a > 0 and b > 0) or (a > 0 and c > 0)")
    same("a < b < c", "a < b and b < c")
    same("clip(a, -1, 1)", "max(-1, min(a, 1))")
    same("a not in (b, c)", "not (a == b or a == c)")
    same("isnull(a + b)", "isnull(a) or isnull(b)")


@given(st.lists(numbers, min_size=1, max_size=20))
def test_rows_do_not_depend_on_each_other(cells: list[float]) -> None:
    expression = "log(a + 1) * 2 >= 3 or a in (1, 2)"
    together = evaluate(expression, {"a": np.array(cells)})
    alone = [evaluate(expression, {"a": np.array([cell])})[0] for cell in cells]
    np.testing.assert_equal(together, alone)
