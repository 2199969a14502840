"""Deletes pieces that no prepared folder was made of or refers to."""

import json
import posixpath
import re
import time
from collections import defaultdict

import pyarrow.fs as pafs

from mtrec_ray.data.filesystem import open_fs, path_in
from mtrec_ray.data.preparing.pieces import LAST, Pieces
from mtrec_ray.errors import DataError

USED = "pieces.json"
"""In a prepared folder: kind -> keys of the pieces that it was made of, or refers to."""
_MANIFEST = "manifest.json"
SCRATCH = ".tmp-"
"""Part of the names of the folders that `prepare` works in."""
_OURS = re.compile(rf"([0-9a-f]{{16}}){re.escape(SCRATCH)}[0-9a-f]+")
_ABANDONED = 24 * 3600.0
"""Seconds after which a folder in which nothing changed was left by a `prepare` that was killed."""


def prune(prepared_dir: str) -> tuple[int, int]:
    """Deletes the pieces below `prepared_dir` that no complete prepared folder in it names, and what preparations that
    were killed left there a day ago or longer. To be rid of the pieces of a prepared folder, delete that folder first.

    Returns:
        How many pieces were deleted, and how many stay.

    Raises:
        DataError: another `prepare` may be at work.
    """
    pieces = Pieces.of(prepared_dir)
    fs, root = open_fs(prepared_dir)
    folders = [i for i in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)) if not i.is_file]
    scratch = [folder.path for folder in folders if SCRATCH in folder.base_name]
    for path in scratch:
        _refuse_if_at_work(fs, path)
    for path in scratch:
        _delete_abandoned(fs, path)
    used = _used(fs, [folder.path for folder in folders if folder.path not in scratch])
    deleted = kept = 0
    for kind in fs.get_file_info(pafs.FileSelector(pieces.root, allow_not_found=True)):
        if kind.base_name == LAST:
            continue
        dead: set[str] = set()
        alive: set[str] = set()
        found = fs.get_file_info(pafs.FileSelector(kind.path))
        found.sort(key=lambda info: not info.base_name.endswith(".piece"))  # first what makes a piece known
        for info in found:
            key = info.base_name.partition(".")[0]  # empty for the temporary files of a write that was killed
            if key in used[kind.base_name]:
                alive.add(key)
                continue
            dead |= {key} - {""}
            fs.delete_file(info.path) if info.is_file else fs.delete_dir(info.path)
        deleted += len(dead)
        kept += len(alive)
    return deleted, kept


def _used(fs: pafs.FileSystem, folders: list[str]) -> dict[str, set[str]]:
    used: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        paths = [path_in(folder, name) for name in (_MANIFEST, USED)]
        if all(info.is_file for info in fs.get_file_info(paths)):
            with fs.open_input_stream(paths[1]) as file:
                for kind, keys in json.loads(file.read()).items():
                    used[kind].update(keys)
    return used


def _refuse_if_at_work(fs: pafs.FileSystem, folder: str) -> None:
    infos = [*fs.get_file_info([folder]), *fs.get_file_info(pafs.FileSelector(folder, recursive=True))]
    last = max(((info.mtime_ns or 0) / 1e9 for info in infos), default=0.0)
    if time.time() - last < _ABANDONED:
        raise DataError(
            f"'{folder}' was changed less than a day ago, so another `mtrec prepare` may be at work, whose pieces must "
            "not be deleted. Wait for it; or, if it was killed, delete that folder, and prune again."
        )


def _delete_abandoned(fs: pafs.FileSystem, scratch: str) -> None:
    """And what it left in the place of the result, where that is written in place (`prepared.Workplace`)."""
    fs.delete_dir(scratch)
    name = _OURS.fullmatch(posixpath.basename(scratch))
    if name is None:  # somebody else's, of whose neighbours nothing is known
        return
    result = path_in(posixpath.dirname(scratch), name[1])
    is_begun = fs.get_file_info(result).type == pafs.FileType.Directory
    if is_begun and not fs.get_file_info(path_in(result, _MANIFEST)).is_file:
        fs.delete_dir(result)
