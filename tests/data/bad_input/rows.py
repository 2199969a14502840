"""Rows that are wrong: cells, times, types, ids, columns."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from tests.data.bad_input.setup import DAY, START, TIME_COLUMNS, Row, Setup, Source, any_source

_CELLS: list[Any] = [
    None,
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "-inf",
    float("nan"),
    float("inf"),
    -1,
    -0.5,
    0,
    2,
    1e300,
    -1e300,
    1e39,
    2**63,
    2**64,
    10**400,
    10**30,
    0.1,
    "12abc",
    "1_000",
    "0x10",
    "１２",
    "true",
    True,
    "\x00",
    "a\x00b",
    "a\x1fb",
    "x" * 5_000,
    "9" * 5_000,
    "søk 🙂 \u202e",
    "\ud800",
    'quo"te',
    "new\nline",
    "cr\rcell",
    "a,b;c\td",
    "'; --",
    "../../etc",
    "{brace}",
    Decimal("1.10"),
    [1, 2],
    {"a": 1},
]
_TIMES: list[Any] = [
    None,
    "",
    0,
    -1,
    1,
    START * 1_000,
    START * 10**6,
    START * 10**9,
    10**18,
    10**30,
    2**63 - 1,
    float("nan"),
    float("inf"),
    1e300,
    START + 0.5,
    f"{START}.25",
    "2024-01-01",
    "2024-01-01T00:00:00+25:00",
    "2024-01-01T00:00:00+14:00",
    "2024-01-01T00:00:00-00:30",
    "2024-01-01T00:00:00Z",
    "2024-03-31T02:30:00",
    "2024-10-27T02:30:00",
    "2024-02-30",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "10000-01-01",
    "yesterday",
    "1,704,067,200",
]


def _some_rows(setup: Setup, source: Source) -> list[Row]:
    """One, some or all of a source's rows."""
    if not source.rows:
        return []
    return setup.random.sample(source.rows, setup.random.choice([1, min(3, len(source.rows)), len(source.rows)]))


def strange_cells(setup: Setup) -> None:
    source = any_source(setup)
    column = setup.random.choice(source.columns)
    for row in _some_rows(setup, source):
        row[column] = setup.random.choice(_CELLS)


def strange_column(setup: Setup) -> None:
    """The same strange cell in all rows of a column."""
    source = any_source(setup)
    column, cell = setup.random.choice(source.columns), setup.random.choice(_CELLS)
    for row in source.rows:
        row[column] = cell


def strange_times(setup: Setup) -> None:
    source = any_source(setup)
    columns = [name for name in TIME_COLUMNS if name in source.columns]
    if columns:
        column = setup.random.choice(columns)
        same = setup.random.choice([None, setup.random.choice(_TIMES)])
        for row in _some_rows(setup, source):
            row[column] = setup.random.choice(_TIMES) if same is None else same


def other_unit(setup: Setup) -> None:
    """Milliseconds where seconds are declared, in one file or in all."""
    for source in setup.random.choice([setup.log, setup.log[-1:], setup.sources]):
        for row in source.rows:
            if isinstance(row.get("ts"), int):
                row["ts"] *= 1_000


def same_everywhere(setup: Setup) -> None:
    """All rows of one user, item, time, or impression."""
    column = setup.random.choice(["user_id", "item_id", "ts", "impression", "request", "click"])
    for source in setup.sources:
        for row in source.rows:
            if column in row:
                row[column] = setup.log[0].rows[0].get(column) if setup.log[0].rows else 1


def no_rows(setup: Setup) -> None:
    source = any_source(setup)
    source.header = source.columns
    source.rows.clear()


def one_row(setup: Setup) -> None:
    for source in setup.random.choice([setup.log, setup.feedback or setup.log, setup.sources]):
        source.header = source.columns
        del source.rows[1:]


def missing_column(setup: Setup) -> None:
    source = any_source(setup)
    gone = setup.random.choice(source.columns)
    source.header = [name for name in source.columns if name != gone]


def renamed_column(setup: Setup) -> None:
    source = any_source(setup)
    old = setup.random.choice(source.columns)
    new = setup.random.choice(
        [old.upper(), f" {old}", "", "a.b", "ünï", "x`y", "\x00", setup.random.choice(source.columns)]
    )
    for row in source.rows:
        row[new] = row.get(old)
    source.header = [new if name == old else name for name in source.columns]


def two_columns_of_a_name(setup: Setup) -> None:
    source = any_source(setup)
    source.header = [*source.columns, setup.random.choice(source.columns)]


def other_type_later(setup: Setup) -> None:
    """A column that is text, a list, a float or a decimal in the last file."""
    source = setup.random.choice([setup.log[-1], *setup.feedback, *setup.tables.values()])
    column = setup.random.choice(source.columns)
    change: Callable[[Any], Any] = setup.random.choice(
        [str, lambda cell: [cell], lambda cell: {"value": cell}, float, bool, lambda cell: Decimal(str(cell))]
    )
    for row in source.rows:
        try:
            row[column] = change(row[column])
        except (TypeError, ValueError, ArithmeticError, KeyError):
            row[column] = None


def no_such_rows(setup: Setup) -> None:
    """Feedback of nobody, before its exposure, or twice."""
    for source in setup.feedback:
        how = setup.random.choice(["unknown", "early", "twice", "other type"])
        for row in list(source.rows):
            if how == "unknown":
                row["impression"] = row["item_id"] = "nobody"
            elif how == "early" and isinstance(row.get("ts"), int):
                row["ts"] -= 2 * DAY
            elif how == "twice":
                source.rows.append(dict(row))
            elif how == "other type":
                row["kind"] = "hide"


def tables_contradict(setup: Setup) -> None:
    """Keys twice with other content, keys of nobody, ids that lead to each other."""
    source = setup.random.choice(list(setup.tables.values()))
    how = setup.random.choice(["twice", "unknown", "circle", "one key"])
    for n, row in enumerate(list(source.rows)):
        key = source.columns[0]
        if how == "twice":
            source.rows.append(row | {name: f"{cell}9" for name, cell in row.items() if name not in (key, "since")})
        elif how == "unknown":
            row[key] = f"nobody{n}"
        elif how == "circle" and "new" in row:
            row["old"], row["new"] = n, n + 1
        elif how == "one key":
            row[key] = 0
