"""Files in wrong places, or that something happens to: names, folders, links, permissions, full disks."""

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray import cli
from mtrec_ray.config import Data
from mtrec_ray.data import prepare as prepare_module
from mtrec_ray.data.reading import formats, logs
from mtrec_ray.data.reading.log_files import LogFile
from tests.data.bad_input.setup import Setup, any_source


def something_else_there(setup: Setup) -> None:
    """A folder, a broken link, or nothing where a file was."""
    path = setup.path(any_source(setup))
    what = setup.random.choice(["folder", "link to nothing", "gone", "link to itself", "pipe"])

    def damage() -> None:
        if not path.is_file():
            return
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "link to nothing":
            path.symlink_to("nothing")
        elif what == "link to itself":
            path.symlink_to(path.name)
        elif what == "pipe":
            os.mkfifo(path)

    setup.then.append(damage)
    setup.lost = True


def looping_links(setup: Setup) -> None:
    """Folders that contain themselves, twice, so that nobody who follows them comes to an end."""
    folder = setup.folder / "logs"

    def damage() -> None:
        for name in ("again", "dt=2024-01-02b"):
            (folder / name).symlink_to(folder)

    setup.then.append(damage)
    setup.lost = True


def other_files_beside(setup: Setup) -> None:
    def damage() -> None:
        for name in ("_SUCCESS", ".hidden.csv", "README.md", "empty.csv.tmp"):
            (setup.folder / "logs" / name).write_text("not a log")

    setup.then.append(damage)


def strange_names(setup: Setup) -> None:
    """Files whose names mean something to globs, URLs or shells."""
    source = setup.random.choice(setup.log)
    name = setup.random.choice(["a*b", "a[1]", "a?b=c", "a b#c", "søk", "a:b", "-rf", "%41", "a\nb"])
    source.path = f"logs/{name}.{source.format}"
    setup.lost = True


def wrong_extension(setup: Setup) -> None:
    source = any_source(setup)
    stem = source.path.partition(".")[0]
    extension = setup.random.choice(["parquet", "csv", "jsonl", "csv.gz", "json.zst", "txt", "bak", ""])
    source.path = f"{stem}.{extension}".rstrip(".")
    for table, part in (("items", "items"), ("users", "users"), ("map", "user_map")):
        if setup.tables.get(table) is source and part in setup.config["data"]:
            setup.config["data"][part]["path"] = source.path
    setup.lost = True


def declared_format(setup: Setup) -> None:
    setup.config["data"]["format"] = setup.random.choice(["csv", "jsonl", "parquet"])
    setup.lost = True


def folders_misnamed(setup: Setup) -> None:
    """Partition folders malformed, without value, or out of range."""
    source = setup.random.choice(setup.log)
    name = setup.random.choice(
        [
            "dt=",
            "dt",
            "=2024-01-01",
            "dt=2024-13-45",
            "dt=20240101",
            "dt=2023-01-01",
            "dt=__HIVE_DEFAULT_PARTITION__",
            "dt=2024%2D01%2D01",
            "_dt=2024-01-01",
            "dt=2024-01-01=x",
            "dt=9" + "9" * 200,
            "DT=2024-01-01",
            ".dt=1",
        ]
    )
    source.path = f"logs/{name}/{Path(source.path).name}"
    setup.config["data"]["partitions"] = setup.random.choice(
        [
            {"dt": {}},
            {"dt": {"first": "2024-01-01"}},
            {"dt": {"first": 1, "last": 0}},
            {"hr": {}},
            {"dt": {"last": 2024}},
            {"dt": {"first": "9" * 5000}},
        ]
    )
    setup.lost = True


def gone_after_listing(setup: Setup) -> None:
    """A file that is there when the log is listed, and gone when it is read."""
    path = setup.path(any_source(setup))

    def damage(patch: pytest.MonkeyPatch) -> None:
        listed = logs.find_files

        def find_files(data: Data) -> list[LogFile]:
            found = listed(data)
            if path.is_file():
                path.unlink()
            return found

        patch.setattr(prepare_module, "find_files", find_files)

    setup.during.append(damage)
    setup.lost = True


def may_not_be_read(setup: Setup) -> None:
    """A file of somebody else's; for root, who may read all, it is made up."""
    path = str(setup.path(any_source(setup)))

    def damage(patch: pytest.MonkeyPatch) -> None:
        opened = formats.open_fs

        def open_fs(asked: str) -> Any:
            if asked == path:
                raise PermissionError(13, f"Failed to open local file '{asked}'. Detail: [errno 13] Permission denied")
            return opened(asked)

        patch.setattr(formats, "open_fs", open_fs)

    setup.during.append(damage)
    setup.lost = True


def full_disk(setup: Setup) -> None:
    """No file may grow beyond some bytes: the system refuses to write on, as on a disk that is full."""
    most = setup.random.choice([0, 200, 1_000, 4_000, 20_000])

    def damage(patch: pytest.MonkeyPatch) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        run = cli.main

        def main() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            try:
                run()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        patch.setattr(cli, "main", main)

    setup.during.append(damage)


def no_logs(setup: Setup) -> None:
    setup.then.append(lambda: shutil.rmtree(setup.folder / "logs", ignore_errors=True))
    setup.lost = True
