"""Room for a new sample where an earlier one was."""

import pyarrow.fs as pafs

from mtrec_ray.errors import DataError

_MARKS = ("truth", "truth.parquet", "truth.json")
"""What only generated samples have beside their logs."""
_FOLDERS = ("logs", "feedback", "truth")
_TRUTH = ("truth.parquet", "truth.json", "observer.parquet")
_FILES = (*_TRUTH, "users.parquet", "user_graph.parquet", "item_graph.parquet")
"""What the next sample may not write again."""


def clear(fs: pafs.FileSystem, root: str, folder: str) -> None:
    """Removes an earlier sample, which had perhaps more files; never anybody's own logs.

    Raises:
        DataError: the logs are not a sample's.
    """
    folders, files, marks = (
        [name for name in names if _exists(fs, f"{root}/{name}")] for names in (_FOLDERS, _FILES, _MARKS)
    )
    if not marks:
        if folders:
            raise DataError(
                f"'{folder}' already has a folder '{folders[0]}' that is not a generated sample; choose another folder."
            )
        return
    for name in folders:
        fs.delete_dir(f"{root}/{name}")
    for name in files:
        fs.delete_file(f"{root}/{name}")


def _exists(fs: pafs.FileSystem, path: str) -> bool:
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)
