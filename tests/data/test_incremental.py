"""`prepare` after every delivery is the same as one of everything at once, and does only what is new."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mtrec_ray.config import Run
from mtrec_ray.data import filesystem
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.preparing.pieces import Pieces
from mtrec_ray.data.preparing.prune import prune
from mtrec_ray.errors import ConfigError, DataError
from tests.data.by_hand import config

pytestmark = pytest.mark.slow

DAY = 86_400
START = 20_000 * DAY
DAYS, USERS, ITEMS = 6, 9, 7
LOG, ACTS = "user,item,time,shown,like\n", "user,item,time,kind\n"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, seed: int, day: int, rows: int = 14, items: int = ITEMS) -> None:
    """A file of the log, or of feedback of any day up to this one."""
    rng = np.random.default_rng([seed, day])
    header, lines = (LOG, []) if name.startswith("log/") else (ACTS, [])
    for _ in range(rows):
        user, item, second = rng.integers(USERS), rng.integers(items), int(rng.integers(DAY))
        time = START + second + DAY * (day if header is LOG else int(rng.integers(day + 1)))
        more = f"s{rng.integers(30)},{rng.integers(2)}" if header is LOG else "LIKE"
        lines.append(f"{user},{item},{time},{more}\n")
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(lines))


def write_table(items: int) -> None:
    """The last item first, so that each new one moves the others."""
    rows = [f'{i},{"ab"[i % 2]},"[{i}, 0.5, 1, 2]"\n' for i in reversed(range(items))]
    Path("items.csv").write_text("id,genre,image\n" + "".join(rows))
    versions = [f'{i % USERS},{START + DAY * (i % 4)},"[{i}, 1.5, 2, 0]"\n' for i in reversed(range(2 * items))]
    Path("users.csv").write_text("id,since,graph\n" + "".join(versions))


def run_of(prepared: str = "prepared", **parts: Any) -> Run:
    chosen: dict[str, Any] = {
        "data__logs": "log",
        "data__buckets": 2,
        "data__prepared_dir": prepared,
        "features__aggregates": ["user"],
        "features__min_count": 2,
        "split": {"train_until": START + 3 * DAY, "valid_until": START + 4 * DAY},
    }
    return config(**{**chosen, **parts})


def of_feedback(**parts: Any) -> dict[str, Any]:
    source = {"logs": "acts", "event": "kind", "unique_by": ["user", "item", "time"]}
    return {
        "data__feedback": [source],
        "data__unique_by": ["user", "item", "time"],
        "tasks": {"like": {"event": "LIKE", "window": "1d"}},
        **parts,
    }


MATCHED = {
    "data__categories": ["shown"],
    "data__items": {"path": "items.csv", "key": "id", "categories": ["genre"]},
}
VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "shares": lambda: {"split": {}, "features__aggregates": ["user", "running item"]},
    "days": lambda: {"data__period": "1d"},
    "fixed": lambda: {
        "data__period": "1d",
        "split": {"fit_until": START + 2 * DAY, "train_until": START + 4 * DAY, "valid_until": START + 5 * DAY},
        "features__aggregates": ["user", "item", "running item"],
    },
    "catalogue": lambda: {
        **VARIANTS["fixed"](),
        "tasks": {"next": {"kind": "retrieval", "label": "like", "feedback_delay": 0}},
        "data__items": {"path": "items.csv", "key": "id", "categories": ["genre"]},
        "features__aggregates": [],
    },
    "tastes": lambda: {
        **VARIANTS["fixed"](),
        **MATCHED,
        "features__aggregates": ["taste genre fading 2d"],
        "features__matches": ["shown * genre", "shown ~ genre"],
    },
    "vectors": lambda: {
        **VARIANTS["fixed"](),
        "data__items": {"path": "items.csv", "key": "id", "vectors": ["image"]},
        "data__users": {"path": "users.csv", "key": "id", "valid_from": "since", "vectors": ["graph"]},
    },
    "feedback": lambda: of_feedback(data__period="2d"),
    "users": lambda: {"split": {"by": "user"}, "data__columns__request": "shown", "data__max_user_events": 12},
}


def content(prepared: Prepared) -> dict[str, Any]:
    """All that a prepared folder holds or refers to, byte by byte."""
    root, manifest = Path(prepared.path), prepared.manifest
    assert not any((root / name).exists() for name in SPLITS)
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in ("manifest.json", "pieces.json")]
    shards = [root / entry.path for split in SPLITS for entry in manifest.shards[split]]
    files += [path.with_suffix(end) for path in shards for end in (".parquet", ".lengths.parquet")]
    files += [root / path for path in manifest.documents]
    assert len(shards) >= 2 * len(SPLITS)
    return {
        "manifest": json.dumps(manifest.model_dump(exclude={"fingerprint"})),
        **{os.path.relpath(path, root): path.read_bytes() for path in files},
    }


def assert_as_at_once(prepared: Prepared, run: Run) -> None:
    shutil.rmtree("full", ignore_errors=True)
    full = prepare(run.model_copy(update={"data": run.data.model_copy(update={"prepared_dir": "full"})}), serial_tasks)
    ours, theirs = content(prepared), content(full)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]
    assert full.manifest.fingerprint == prepared.manifest.fingerprint


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """How often each piece is made."""
    made: Counter[tuple[str, str]] = Counter()
    save = Pieces.save

    def counted(pieces: Pieces, kind: str, key: str, result: Any) -> None:
        save(pieces, kind, key, result)
        made[kind, key] += kind != "last"

    with monkeypatch.context() as patch:
        patch.setattr(Pieces, "save", counted)
        yield made


def kinds(made: Counter[tuple[str, str]]) -> Counter[str]:
    return Counter(kind for kind, _ in made.elements())


def entries(prepared: Prepared) -> dict[tuple[str, int, int], str]:
    """(split, bucket, period) -> path."""
    shards = prepared.manifest.shards
    return {(split, e.bucket, e.period): e.path for split in SPLITS for e in shards[split] if e.requests}


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), variant=st.sampled_from(sorted(VARIANTS)))
def test_any_schedule_of_deliveries_gives_what_a_full_run_gives(
    tmp_path: Path, data: st.DataObject, variant: str
) -> None:
    """Days come in any order and in parts, with new items; files are written again with other rows, or once more under
    another name."""
    for name in ("log", "acts", "prepared", "full"):
        shutil.rmtree(name, ignore_errors=True)
    parts = VARIANTS[variant]()
    write_table(ITEMS)
    for day in (0, 3, 5):  # something in each split
        write(f"log/dt={day}/a.csv", 1, day)
        write(f"acts/dt={day}/a.csv", 2, day)
    prepare(run_of(**parts), serial_tasks)
    for _ in range(data.draw(st.integers(1, 2))):
        for kind, day, part, seed in data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["log", "acts"]), st.integers(0, 5), st.sampled_from("abc"), st.integers(1, 4)
                ),
                min_size=1,
                max_size=3,
            )
        ):
            write(f"{kind}/dt={day}/{part}.csv", seed, day, rows=8, items=ITEMS + seed)
        write_table(ITEMS + data.draw(st.integers(0, 4)))
        prepared = prepare(run_of(**parts), serial_tasks)
        assert_as_at_once(prepared, run_of(**parts))


@pytest.mark.parametrize("at", [3, 9, 17, 30, 45])
def test_a_killed_prepare_goes_on_where_it_was(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at some write; nothing that was complete is done again."""
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    run, writes = run_of(**VARIANTS["fixed"]()), 0
    write_now = filesystem._open_atomic

    def failing(*arguments: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == at:
            raise KeyboardInterrupt
        return write_now(*arguments)

    with watched(monkeypatch) as before, monkeypatch.context() as patch:
        patch.setattr(filesystem, "_open_atomic", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(run, serial_tasks)
    with watched(monkeypatch) as made:
        prepared = prepare(run, serial_tasks)
    assert not set(before) & set(made)
    assert kinds(before + made)["read"] == DAYS
    assert_as_at_once(prepared, run)


def test_after_a_real_kill_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    run = run_of(**VARIANTS["days"]())
    child = os.fork()
    if not child:
        try:
            save = Pieces.save

            def deadly(pieces: Pieces, kind: str, key: str, result: Any) -> None:
                save(pieces, kind, key, result)
                if kind == "shards":
                    os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(Pieces, "save", deadly)
            prepare(run, serial_tasks)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not list(Path("prepared").glob("*/manifest.json"))
    with watched(monkeypatch) as made:
        prepared = prepare(run, serial_tasks)
    assert kinds(made).keys() == {"shards", "buckets"}
    assert kinds(made)["shards"] == sum(map(len, prepared.manifest.shards.values())) - 1
    assert_as_at_once(prepared, run)
    with pytest.raises(DataError, match="less than a day ago, so another `mtrec prepare` may be at work"):
        prune("prepared")
    (left,) = Path("prepared").glob("*.tmp-*")
    shutil.rmtree(left)
    assert prune("prepared")[0] == 0


@pytest.mark.parametrize("variant", ["fixed", "catalogue", "vectors"])
def test_new_days_add_shards_and_leave_those_of_the_others(
    variant: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The new day has a new item, which comes before all others in the catalogue and in the table of items; the table
    of users opens with a version of that day."""
    write_table(ITEMS)
    for day in range(DAYS - 1):
        write(f"log/dt={day}/a.csv", 1, day)
    parts = VARIANTS[variant]()
    first = prepare(run_of(**parts), serial_tasks)
    stamps = {path: (os.stat(path).st_mtime_ns, path.read_bytes()) for path in Path("prepared/pieces/shards").iterdir()}
    write(f"log/dt={DAYS - 1}/a.csv", 1, DAYS - 1)
    with open(f"log/dt={DAYS - 1}/a.csv", "a") as log:
        log.write(f"0,-1,{START + DAY * (DAYS - 1)},s1,1\n")
    for name, row in (("items", '-1,b,"[9, 9, 9, 9]"'), ("users", f'0,{START + DAY * (DAYS - 1)},"[8, 8, 8, 8]"')):
        header, rest = Path(f"{name}.csv").read_text().split("\n", 1)
        Path(f"{name}.csv").write_text(f"{header}\n{row}\n{rest}")
    capsys.readouterr()
    with watched(monkeypatch) as made:
        second = prepare(run_of(**parts), serial_tasks)
    assert kinds(made)["read"] == 1
    new = entries(second).keys() - entries(first).keys()
    assert {period for _, _, period in new} == {(START + (DAYS - 1) * DAY) // DAY}
    assert kinds(made)["shards"] == len(new) == 2
    assert {key: entries(second)[key] for key in entries(first)} == entries(first)
    assert {path: (os.stat(path).st_mtime_ns, path.read_bytes()) for path in stamps} == stamps
    said = capsys.readouterr().err
    assert "1 of 6 files were read now, the others are as they were" in said
    assert "2 of 12 shards were encoded now" in said
    assert "encoded anew" not in said
    assert_as_at_once(second, run_of(**parts))


def test_with_the_boundary_a_day_later_its_day_alone_changes_its_split() -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    parts = VARIANTS["fixed"]()
    first = prepare(run_of(**parts), serial_tasks)
    parts["split"] |= {"train_until": START + 5 * DAY, "valid_until": START + 6 * DAY}
    second = prepare(run_of(**parts), serial_tasks)
    train, valid = ({p for key, p in entries(first).items() if key[0] == split} for split in ("train", "valid"))
    assert train < {path for (split, *_), path in entries(second).items() if split == "train"}
    assert not valid & set(entries(second).values())
    assert_as_at_once(second, run_of(**parts))


def test_without_a_fixed_time_all_is_fitted_and_encoded_anew_and_that_is_said(capsys: Any) -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    first = prepare(run_of(split={}, data__period="1d"), serial_tasks)
    assert "anew" not in capsys.readouterr().err
    write("log/dt=2/b.csv", 2, 2)
    second = prepare(run_of(split={}, data__period="1d"), serial_tasks)
    assert not set(entries(first).values()) & set(entries(second).values())
    assert "all shards were encoded anew; split.fit_until would keep those" in capsys.readouterr().err


def test_late_feedback_changes_only_what_it_touches() -> None:
    """A like of day 1 delivered last: its exposure's shard, and those later ones whose candidates see it."""
    rows = [
        (user, item, START + DAY * day + 10 * user + item)
        for day in range(DAYS)
        for user in range(4)
        for item in (1, 2)
    ]
    Path("log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    header = "user,item,time,kind\n"
    Path("acts").mkdir()
    Path("acts/a.csv").write_text(header + f"0,1,{START + 60},LIKE\n1,1,{START + 60},LIKE\n")
    until = {"fit_until": START + DAY, "train_until": START + 4 * DAY, "valid_until": START + 5 * DAY}
    run = run_of(**of_feedback(data__logs="log.csv", data__period="1d", data__buckets=4, split=until))
    run = run.model_copy(update={"tasks": {"like": run.tasks["like"].model_copy(update={"window": 3600.0})}})
    first = prepare(run, serial_tasks)
    Path("acts/b.csv").write_text(header + f"3,2,{START + 2 * DAY + 40},LIKE\n")
    second = prepare(run, serial_tasks)
    changed = {key for key, path in entries(second).items() if entries(first).get(key) != path}
    (bucket,) = {bucket for _, bucket, _ in changed}
    assert {period - START // DAY for _, _, period in changed} == {2, 3, 4, 5}
    assert entries(first).keys() == entries(second).keys()
    assert {b for _, b, _ in entries(first)} > {bucket}
    assert_as_at_once(second, run)


def test_a_file_that_is_only_touched_is_read_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    first = prepare(run_of(), serial_tasks)
    os.utime("log/dt=2/a.csv", (1, 1))
    with watched(monkeypatch) as made:
        second = prepare(run_of(), serial_tasks)
    assert kinds(made) == {"read": 1}
    assert second.path != first.path
    assert content(first) == content(second)


CHANGES: dict[str, dict[str, Any]] = {
    "history.lag": {"history__lag": "1h"},
    "history.max_events": {"history__max_events": 4},
    "history.exposures": {"history__exposures": False},
    "features.min_count": {"features__min_count": 1},
    "features.time": {"features__time": False},
    "features.aggregates": {"features__aggregates": ["user", "item"]},
    "tasks.label": {"tasks__like__label": "1 - like"},
    "tasks.feedback_delay": {"tasks__like__feedback_delay": "5h"},
    "data.columns.request": {"data__columns__request": "shown"},
    "data.columns.query": {"data__columns__query": "shown"},
    "data.categories": {"data__categories": ["shown"]},
    "features.matches": {**MATCHED, "features__matches": ["shown * genre"]},
    "data.time_zone": {"data__time_zone": "Asia/Tokyo"},
    "data.buckets": {"data__buckets": 3},
    "data.period": {"data__period": "1d"},
    "data.unique_by": {"data__unique_by": ["user", "item"]},
    "data.max_user_events": {"data__max_user_events": 5},
    "data.items": {"data__items": {"path": "items.csv", "key": "id", "categories": ["genre"]}},
    "split": {"split": {"by": "user"}},
    "split.fit_until": {"split__fit_until": START + DAY},
    "backbone": {"backbone": {"name": "nano", "vocab_size": 300}},
    "item table": {},
}


def test_a_changed_setting_is_not_answered_from_pieces_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn in one folder full of the others' pieces; all come out as in a folder of their own."""
    Path("items.csv").write_text("id,genre\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(ITEMS)))
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    seen: dict[str, dict[str, Any]] = {"": content(prepare(run_of(), serial_tasks))}
    with_table = CHANGES["data.items"]
    for name, change in CHANGES.items():
        if name == "item table":
            Path("items.csv").write_text("id,genre\n" + "".join(f"{i},{'ba'[i % 2]}\n" for i in range(ITEMS)))
            change = with_table
        base: dict[str, Any] = {"split": {"train_until": START + 3 * DAY, "valid_until": START + 4 * DAY}}
        run = run_of(**{**base, **change})
        prepared = prepare(run, serial_tasks)
        assert_as_at_once(prepared, run)
        seen[name] = content(prepared)
        assert seen[name] != seen[""], name
    assert seen["item table"] != seen["data.items"]


def test_prune_deletes_what_no_prepared_folder_refers_to() -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    first = prepare(run_of(data__period="1d", split__fit_until=START + DAY), serial_tasks)
    write("log/dt=5/b.csv", 7, 5)
    second = prepare(run_of(data__period="1d", split__fit_until=START + DAY), serial_tasks)
    kept, other = content(second), content(first)
    assert prune("prepared")[0] == 0
    assert (content(first), content(second)) == (other, kept)
    shutil.rmtree(first.path)
    Path("prepared/pieces/shards/.half.parquet.x.tmp").write_text("")
    deleted, stay = prune("prepared")
    assert deleted > 0 < stay
    assert content(second) == kept
    assert not [path for path in Path("prepared/pieces").rglob("*") if path.name.startswith(".")]
    only_first = {path for path in set(entries(first).values()) - set(entries(second).values())}
    assert only_first
    assert not any(Path(second.path, path).exists() for path in only_first)
    shutil.rmtree(second.path)
    assert prune("prepared")[1] == 0
    assert not [path for path in Path("prepared/pieces").rglob("*") if path.is_file() and path.parent.name != "last"]
    assert content(prepare(run_of(data__period="1d", split__fit_until=START + DAY), serial_tasks)) == kept


def test_a_damaged_shard_is_made_again_as_the_message_says() -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    first = prepare(run_of(), serial_tasks)
    expected, path = content(first), Path(first.path, first.manifest.shards["train"][0].path).resolve()
    for file in path.parent.glob(f"{path.stem}.*"):
        file.unlink()
    shutil.rmtree(first.path)
    assert content(prepare(run_of(), serial_tasks)) == expected


def test_what_is_fitted_must_come_from_train_rows() -> None:
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)
    with pytest.raises(
        ConfigError, match=r"split.fit_until .* lies after the end of the train period, 2024-10-07T00:00:00"
    ):
        prepare(run_of(split__fit_until=START + 4 * DAY), serial_tasks)
