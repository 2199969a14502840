"""`prepare` and `prune` where nothing can be renamed and folders do not exist: on a store that speaks S3."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import copy_file, copy_folder, joined, open_atomic, open_fs
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared, is_complete, load_prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.preparing.prune import prune
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.errors import DataError
from tests.data.test_incremental import DAY, DAYS, START, VARIANTS, kinds, run_of, watched, write, write_table
from tests.object_store import ObjectStore, object_store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """With the log of all days but the last."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with object_store() as opened:
        write_table(8)
        for day in range(DAYS - 1):
            deliver(opened, day)
        yield opened


def deliver(store: ObjectStore, day: int) -> None:
    write("log/a.csv", 1, day, items=8)
    store.put(f"log/dt={day}/a.csv", Path("log/a.csv").read_bytes())


def run_on(store: ObjectStore, prepared: str) -> Run:
    """A catalogue, fixed boundaries, a shard a day. The log lies in the store, too."""
    return run_of(prepared, **VARIANTS["catalogue"](), data__logs=store.url("log"), data__buckets=1)


def assert_as_on_disk(store: ObjectStore, below: str) -> Prepared:
    """All that a full run leaves on a disk lies in the store, too; and the steps that it is read in are the same."""
    local, remote = run_on(store, "disk"), run_on(store, store.url(below))
    ours, theirs = load_prepared(remote), prepare(local, serial_tasks)
    assert ours.manifest == theirs.manifest
    for file in Path("disk").rglob("*"):
        if file.is_file() and file.suffix != ".piece":
            assert store.objects[f"{below}/{file.relative_to('disk')}"] == file.read_bytes(), file
    settings = OrderSettings("train", 0, 16, 10**6, 1, True)
    (here,), (there,) = (next(StepStream.local(p.path, p.manifest, settings).epoch(0)).batches for p in (ours, theirs))
    assert len(here.row_ids)
    assert all(np.array_equal(getattr(here, name), getattr(there, name)) for name in ("row_ids", "event_catalogue"))
    return ours


def manifests(store: ObjectStore) -> list[str]:
    return [key for key in store.objects if key.endswith("/manifest.json")]


def pieces(store: ObjectStore, below: str) -> set[tuple[str, ...]]:
    """Kinds and keys of those that are complete."""
    found = [key.split("/")[-2:] for key in store.files(f"{below}/pieces/") if key.endswith(".piece")]
    return {(kind, name.partition(".")[0]) for kind, name in found}


def test_a_url_keeps_what_it_says_of_its_file_system_at_its_end() -> None:
    assert joined("s3://a/b/?region=x", "c/d") == "s3://a/b/c/d?region=x"
    assert joined("s3://a", "b") == "s3://a/b"
    assert joined("what?", "b") == "what?/b"
    assert joined("file:///", "b") == "file:///b"


def test_what_was_half_written_is_not_published(store: ObjectStore) -> None:
    fs, path = open_fs(store.url("a.bin"))

    def half() -> None:
        with open_atomic(fs, path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert "a.bin" not in store.objects
    with open_atomic(fs, path) as stream:
        stream.write(b"wh")
        assert "a.bin" not in store.objects
        stream.write(b"ole")
    assert store.objects["a.bin"] == b"whole"


class _Torn(io.BytesIO):
    """A file system, and its one file, which ends in an error."""

    def open_input_stream(self, path: str) -> "_Torn":
        return _Torn(b"half")

    def read(self, size: int | None = -1) -> bytes:
        if not (found := super().read(size)):
            raise OSError("connection lost")
        return found


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_copy_that_failed_is_told_and_leaves_nothing(store: ObjectStore, tmp_path: Path, writes: int) -> None:
    """It takes three: an upload is begun, has its parts, and is completed."""
    fs, root = open_fs(store.url("runs"))
    (tmp_path / "here/below").mkdir(parents=True)
    (tmp_path / "here/below/a.bin").write_bytes(b"whole")
    copied = (LocalFileSystem(), f"{tmp_path}/here/below/a.bin", fs, f"{root}/a.bin")
    store.writes_left = writes
    with pytest.raises(DataError, match=r"Cannot write 'bucket/runs/a\.bin': .*ACCESS_DENIED"):
        copy_file(*copied)
    assert not store.files("runs/")
    store.writes_left = 3
    copy_file(*copied)
    store.writes_left = None
    with pytest.raises(DataError, match="connection lost"):
        copy_file(_Torn(), "there/b.bin", fs, f"{root}/b.bin")  # type: ignore[arg-type]
    copy_folder(LocalFileSystem(), f"{tmp_path}/here", fs, f"{root}/all")
    assert store.files("runs/") == {"runs/a.bin": b"whole", "runs/all/below/a.bin": b"whole"}


def test_deliveries_are_prepared_as_on_a_disk(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on(store, store.url("prepared"))
    prepare(run, serial_tasks)
    assert_as_on_disk(store, "prepared")
    before = store.files("prepared/pieces/shards/")
    deliver(store, DAYS - 1)
    store.objects[f"log/dt={DAYS - 1}/a.csv"] += f"0,-1,{START + DAY * (DAYS - 1)},s1,1\n".encode()
    store.writes.clear()
    with watched(monkeypatch) as made:
        prepare(run, serial_tasks)
    assert kinds(made)["read"] == kinds(made)["shards"] == 1, "though there is a new item"
    changed = [write for write in store.writes if write.partition(" ")[2] in before]
    assert not changed
    assert_as_on_disk(store, "prepared")
    assert not [key for key in store.objects if ".tmp" in key]
    assert not store.uploads


def test_a_run_that_is_cut_off_publishes_nothing_and_is_gone_on_with(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(run_on(store, store.url("whole")), serial_tasks)
    writes = list(store.writes)
    manifest = next(i for i, write in enumerate(writes) if write.endswith("/manifest.json"))
    made_last = {write for write in writes[manifest:] if not write.startswith("DELETE") and write[-1] not in "/ "}
    assert {write.split("/")[-1] for write in made_last} == {"manifest.json"}
    for left in (manifest // 3, manifest - 8, manifest + 1):
        run = run_on(store, store.url(f"cut-{left}"))
        store.writes_left, known = left, manifests(store)
        with pytest.raises(DataError, match=r"Cannot write '.*ACCESS_DENIED"):
            prepare(run, serial_tasks)
        done = pieces(store, f"cut-{left}")
        assert manifests(store) == known
        store.writes_left = None
        with pytest.raises(DataError, match="There is no prepared data for this config"):
            load_prepared(run)
        with watched(monkeypatch) as made:
            prepare(run, serial_tasks)
        assert done
        assert not done & set(made.elements()), "nothing is done twice"
        assert_as_on_disk(store, f"cut-{left}")


def test_prune_leaves_what_is_in_use_and_deletes_what_a_killed_run_left(store: ObjectStore) -> None:
    place = store.url("prepared")
    first = prepare(run_on(store, place), serial_tasks)
    deliver(store, DAYS - 1)
    second = prepare(run_on(store, place), serial_tasks)
    assert prune(place)[0] == 0
    fs, root = open_fs(first.path)
    fs.delete_dir(root)
    deleted, stay = prune(place)
    assert deleted > 0 < stay
    assert is_complete(second.path)
    assert_as_on_disk(store, "prepared")
    records = [key for key in store.files("prepared/pieces/") if key.endswith(".piece") and "/last/" not in key]
    assert len(records) == stay
    left_by_a_kill(store, place)
    assert len(folders(store)) == 4, "its own, and what it had begun in the place of its result"
    held = dict(store.objects)
    with pytest.raises(DataError, match="less than a day ago, so another `mtrec prepare` may be at work"):
        prune(place)
    assert store.objects == held
    store.times |= {key: 1.0 for key in store.times if key.startswith("prepared/")}
    prune(place)
    assert not [key for key in store.objects if ".tmp" in key]
    assert folders(store) == {second.manifest.fingerprint, "pieces"}
    assert_as_on_disk(store, "prepared")


def folders(store: ObjectStore) -> set[str]:
    """Directly below that of the prepared data."""
    return {key.split("/")[1] for key in store.files("prepared/")}


def left_by_a_kill(store: ObjectStore, place: str) -> None:
    """A `prepare` of other settings that got as far as to write some of its result in place."""
    run = run_on(store, place).model_copy(update={"split": run_of(split={"by": "user"}).split})
    store.writes_left = 60
    with pytest.raises(DataError, match="ACCESS_DENIED"):
        prepare(run, serial_tasks)
    store.writes_left = None
