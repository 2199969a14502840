"""Configs that are wrong: values, expressions, patterns, misspelt keys, places that cannot be written."""

from typing import Any

from tests.data.bad_input.setup import START, Setup

_VALUES: list[Any] = [
    None, "", " ", 0, 1, -1, 2, 0.5, 1e300, float("inf"), float("nan"), True, False, "x", "user_id", "ts", "click",
    [], ["x"], {}, {"x": 1}, [[]], "{", "{title", "{0}", "{a.b}", "{nothing}", "logs/*", "logs/[", "[z-a]", "**",
    "s3://", "nope://x", "file:///nowhere", "a\x00b", "x" * 5_000, "\ud800", "1h", "-1h", "9" * 400 + "d", "inf",
    "2024-01-02", "2024-99-99", START, 10**400, "user", "iso", "binary", "regression", "Mars/Olympus", "csv", "auto",
    "part",
]  # fmt: skip
_KEYS = [
    "name", "data.logs", "data.layout", "data.columns.user", "data.columns.item", "data.columns.time",
    "data.columns.request", "data.columns.event", "data.columns.query", "data.columns.position",
    "data.columns.row_weight", "data.columns.impression", "data.partitions", "data.partitions.dt",
    "data.partitions.dt.first", "data.feedback", "data.unique_by", "data.max_user_events", "data.user_map",
    "data.user_map.path", "data.user_map.key", "data.user_map.user", "data.user_map.valid_from", "data.time_unit",
    "data.time_zone", "data.candidate_event", "data.items", "data.items.path", "data.items.key", "data.items.text",
    "data.items.valid_from", "data.items.categories", "data.items.numbers", "data.users.key", "data.categories",
    "data.numbers", "data.max_bad_share", "tasks", "tasks.click", "tasks.click.label", "tasks.click.kind",
    "tasks.click.observed", "tasks.click.feedback_time", "tasks.click.feedback_delay", "tasks.click.window",
    "tasks.click.event", "tasks.click.weight", "tasks.click.parent", "tasks.click.params", "tasks.click.classes",
    "history", "history.max_events", "history.lag", "history.event_tokens", "history.layout",
    "history.max_candidates", "split.by", "split.column", "split.valid", "split.test", "split.train_until",
    "split.valid_until", "features.aggregates", "features.min_count", "features.folds", "backbone",
    "backbone.vocab_size", "seed", "plugins", "nothing", "data.nothing", "augment.negatives",
]  # fmt: skip
_EXPRESSIONS = [
    "click ==", "clik", "click > 'a'", "click and", "`click`", "`no such`", "1", "'a'", "log(click)", "log()",
    "exp(click)", "click in ()", "click in (1, 'a')", "tab == 'home'", "tab > 'a'", "tab + 1", "click ** 2",
    "click / 0", "click if 1 else 2", "lambda: click", "(" * 300 + "click" + ")" * 300, "-" * 3_000 + "click",
    "click > " + "9" * 400, "click > 1e400", "click\x00", "click is 1", "not click", "isnull(click)", "isnull(tab)",
    "click.real",
    "click[0]", "f'{click}'", "(click := 1)", "stars / 5", "click * 1e300", "clip(stars, 0, 1)", "max(stars, price)",
    "min(click)", "user_id", "ts", "click == 1 == 1", "+".join(["click"] * 2_000),
]  # fmt: skip


_YAML = [
    b"", b"\xff\xfe", b"- 1", b"a: b: c", b"\t", b"name: [", b"name: " + b"[" * 5_000, b"seed: " + b"9" * 5_000,
    b"&a [*a]", b"name: &x {a: *x}", b"? {a: 1}\n: 2", b"1: 2", b"null: 3", b"name: !!python/object:os.system x",
    b"<<: 3", b"a: 1\na: 2", b"name: \x00", b"name: x\ndata: &d {logs: *d}", b"name: 2024-99-99", b"seed: 0b", b"\x80",
]  # fmt: skip


def broken_config(setup: Setup) -> None:
    content = setup.random.choice(_YAML)
    setup.during.append(lambda patch: (setup.folder / "run.yaml").write_bytes(content))
    setup.lost = True


def other_value(setup: Setup) -> None:
    """A value that does not belong there."""
    _set(setup.config, setup.random.choice(_KEYS), setup.random.choice(_VALUES))
    setup.lost = True


def other_expression(setup: Setup) -> None:
    task = setup.random.choice(list(setup.config["tasks"]))
    _set(setup.config, f"tasks.{task}.{setup.random.choice(['label', 'observed'])}", setup.random.choice(_EXPRESSIONS))
    setup.lost = True


def other_pattern(setup: Setup) -> None:
    pattern = setup.random.choice([r"(\d+)", r"\d+", "(", "(a)", "(?P<x>.)", "a{99999999999}(b)", "(.*)", "()"])
    number = {"column": setup.random.choice(["query", "price", "tab"]), "pattern": pattern, "name": "found"}
    _set(setup.config, "data.numbers", [number])


def misspelt(setup: Setup) -> None:
    """A key with a letter left out."""
    parts = [setup.config, *(part for part in setup.config.values() if isinstance(part, dict))]
    part = setup.random.choice([part for part in parts if part])
    key = setup.random.choice(list(part))
    part[str(key)[:-1]] = part.pop(key)
    setup.lost = True


def prepared_elsewhere(setup: Setup) -> None:
    """A folder for the result that cannot be written."""
    where = setup.random.choice(["a file", "below a file", "/proc/nowhere", "/dev/full", "n" * 300, "a\x00b", "", " "])

    def damage() -> None:
        (setup.folder / "a file").write_text("here")

    setup.then.append(damage)
    setup.config["data"]["prepared_dir"] = "a file/deeper" if where == "below a file" else where


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[last] = value
