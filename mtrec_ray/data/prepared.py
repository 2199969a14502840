"""A folder of prepared data: finding it, and making it known only once it is complete."""

import contextlib
import json
import posixpath
import uuid
from dataclasses import dataclass
from typing import Self

import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import joined, open_fs, unreachable, write_atomic, writing
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.pieces import Kept
from mtrec_ray.data.preparing.prune import SCRATCH, USED
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """Prepared data: its folder (a path or URL) and what it says of itself."""

    path: str
    manifest: Manifest

    @classmethod
    def load(cls, path: str) -> Self:
        """Raises `DataError` for a folder without a manifest."""
        return cls(path, load_manifest(path))


def prepared_path(run: Run, digest: str) -> str:
    """Where prepared data with this fingerprint lies."""
    return joined(run.data.prepared_dir, digest)


def is_complete(path: str) -> bool:
    """Whether the manifest, which is written last, is there. Raises `DataError` for a file system that says neither."""
    fs, root = open_fs(path)
    try:
        return fs.get_file_info(posixpath.join(root, "manifest.json")).type == pafs.FileType.File
    except OSError as error:
        raise unreachable(path, error) from error


def load_prepared(run: Run) -> Prepared:
    """The prepared data that belongs to these files and settings.

    Raises:
        DataError: it was not made yet.
    """
    path = prepared_path(run, fingerprint(run))
    if not is_complete(path):
        raise DataError(
            f"There is no prepared data for this config in '{run.data.prepared_dir}' (expected '{path}'): the files or "
            "settings have changed, or it was never made. Run `mtrec prepare` with the same config."
        )
    return Prepared.load(path)


class Workplace:
    """Where prepared data is made: `work`, which is deleted, and `out`, which becomes the folder `path`.

    On a file system with folders `out` is renamed when all is written; object stores have no folders, so there the
    files are written in place and the manifest, last, makes them known.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fs, self.root = open_fs(path)
        self.scratch = f"{self.root}{SCRATCH}{uuid.uuid4().hex[:8]}"
        self.has_folders = self.fs.type_name in ("local", "hdfs")
        self.work = f"{self.scratch}/work"
        self.out = f"{self.scratch}/out" if self.has_folders else self.root
        for folder in (self.work, self.out):
            with writing(folder):
                self.fs.create_dir(folder, recursive=True)

    def begin(self) -> None:
        """Leaves a file from whose time `prune` sees that somebody is at work: on object stores folders have none."""
        write_atomic(self.fs, f"{self.scratch}/started", b"")

    def publish(self, manifest: Manifest, kept: Kept) -> None:
        """Writes the manifest, and which pieces it came of, and makes the folder known. If another run was faster, its
        folder stays.

        Raises:
            DataError: a piece was deleted meanwhile.
        """
        for kind, keys in kept.used.items():
            if keys - kept.pieces.known(kind):
                raise DataError(
                    f"Files below {kept.pieces.root}/{kind} were deleted while they were used. Run `mtrec prepare` "
                    "again, and `mtrec prepare --prune` when no other is at work."
                )
        used = {kind: sorted(keys) for kind, keys in kept.used.items()}
        write_atomic(self.fs, f"{self.out}/{USED}", json.dumps(used).encode())
        write_atomic(self.fs, f"{self.out}/manifest.json", manifest.to_json().encode())
        if self.has_folders and not is_complete(self.path):
            with writing(self.root):
                if self.fs.get_file_info(self.root).type == pafs.FileType.Directory:
                    self.fs.delete_dir(self.root)
                self.fs.move(self.out, self.root)

    def close(self) -> None:
        """Deletes what is not part of the result, or leaves it to `prune`: the error that may have led here must not be
        hidden by another."""
        with contextlib.suppress(OSError):
            if self.fs.get_file_info(self.scratch).type == pafs.FileType.Directory:
                self.fs.delete_dir(self.scratch)
