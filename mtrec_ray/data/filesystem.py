"""Files by local path or URL: opening, listing with globs, and writing so that a reader never sees half a file."""

import contextlib
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import DataError

_OBJECT_STORES = ("s3", "gcs", "abfs")
_COPIED_AT_ONCE = 1 << 20
"""Bytes"""
_GLOB = re.compile(r"[*\[]")


@dataclass(frozen=True)
class FoundFile:
    """One file: `path` opens again anywhere (absolute, or a URL)."""

    path: str
    size: int
    mtime_ns: int
    name: str = ""
    """Its path below what was asked for, which is the same wherever that lies"""


def is_url(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def open_fs(path_or_url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URL (`s3://`, `gs://`, `hdfs://`, `file://` ...), and the path inside it.

    Raises:
        DataError: a URL that pyarrow cannot open, or a path that no file system can have.
    """
    if "\0" in path_or_url:
        raise DataError(f"{path_or_url!r} is no path: it holds a zero byte. Write it again by hand.")
    if not is_url(path_or_url):
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path_or_url))
    try:
        fs, path = pafs.FileSystem.from_uri(path_or_url)
    except (pa.ArrowException, OSError, ValueError, NotImplementedError, ImportError) as error:
        raise unreachable(path_or_url, error) from error
    return fs, path


def unreachable(path: str, error: Exception) -> DataError:
    """The one message for a file system that does not answer, or refuses."""
    if isinstance(error, PermissionError):
        return DataError(
            f"'{path}' may not be read by this user: permission denied. Change its permissions, or leave it out."
        )
    return DataError(
        f"Cannot open '{path}': {_first_line(error)}. Check the address, the credentials "
        "(as environment variables on every node) and the network."
    )


def find(path_or_url: str, enter: Callable[[str], bool] | None = None) -> list[FoundFile]:
    """The file itself, every file below a folder, or the files that match a glob (`*`, `**`, `[...]`), sorted.

    Files and folders below it whose name starts with `_` or `.` are left out, as Hadoop and Spark mean it, and so are
    links to a folder that they lie in, of which there would be no end. Nothing there gives an empty list. With `enter`,
    which is asked of the name of each folder, nothing is listed below those that it refuses.
    """
    base, pattern = _split_glob(path_or_url)
    fs, root = open_fs(base)
    try:
        info = fs.get_file_info(root)
        if info.type == pafs.FileType.File:
            infos = [info]
        elif info.type == pafs.FileType.Directory:
            one_by_one = enter is not None or fs.type_name == "local"  # which alone has links
            infos = (
                list(_walk(fs, root, enter))
                if one_by_one
                else fs.get_file_info(pafs.FileSelector(root, recursive=True))
            )
        else:
            return []
    except (pa.ArrowException, OSError) as error:
        raise unreachable(path_or_url, error) from error
    head, tail = _frame(base, root)
    found = []
    for info in infos:
        inside = info.path[len(root) :].lstrip("/")
        hidden = any(part[0] in "_." for part in inside.split("/") if part)
        if info.type == pafs.FileType.File and not hidden and (pattern is None or pattern.fullmatch(inside)):
            name = inside or posixpath.basename(info.path)
            found.append(FoundFile(head + info.path + tail, info.size, info.mtime_ns or 0, name))
    return sorted(found, key=lambda file: file.path)


def joined(folder: str, name: str) -> str:
    """The path or URL of what lies in a folder. What a URL says of its file system (`?region=...`) stays at its end."""
    address, mark, settings = folder.partition("?") if is_url(folder) else (folder, "", "")
    return f"{address}{'' if address.endswith('/') else '/'}{name}{mark}{settings}"


def path_in(root: str, path: str) -> str:
    """A path that is given relative to a folder. `..` is resolved here, for object stores know no such folder."""
    return posixpath.normpath(posixpath.join(root, path))


def _walk(
    fs: pafs.FileSystem, folder: str, enter: Callable[[str], bool] | None, above: tuple[str, ...] = ()
) -> Iterator[pafs.FileInfo]:
    """`above`: the real paths of the folders that this one was reached through."""
    if fs.type_name == "local":
        if (real := os.path.realpath(folder)) in above:
            return
        above = (*above, real)
    for info in sorted(fs.get_file_info(pafs.FileSelector(folder)), key=lambda info: info.path):
        if info.type != pafs.FileType.Directory:
            yield info
        elif info.base_name[0] not in "_." and (enter is None or enter(info.base_name)):
            yield from _walk(fs, info.path, enter, above)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns what a file system says of writes to `path` in this block, as that a disk is full, into a `DataError`."""
    try:
        yield
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else _first_line(error)
        raise DataError(
            f"Cannot write '{path}': {said}. Make room, let this user write there, or choose another place "
            "(data.prepared_dir, cluster.storage, or the folder that was given)."
        ) from error


@contextlib.contextmanager
def open_atomic(fs: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream whose bytes appear under `path` all at once, when the block ends without an error.

    Object stores show what is uploaded when all of it is there; elsewhere a neighbour is written and moved.

    Raises:
        DataError: `path` cannot be written.
    """
    with writing(path):
        yield from _open_atomic(fs, path)


def _open_atomic(fs: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    if fs.type_name in _OBJECT_STORES:
        # Not in a stream to the store: what was written before an error would be published when that is closed.
        with tempfile.TemporaryDirectory(prefix="mtrec-") as folder:
            with pa.OSFile(f"{folder}/whole", "wb") as stream:
                yield stream
            _upload(f"{folder}/whole", fs, path)
        return
    fs.create_dir(os.path.dirname(path), recursive=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex}.tmp"
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        if fs.type_name != "local" and fs.get_file_info(path).type == pafs.FileType.File:
            fs.delete_file(path)  # HDFS does not rename over an existing file
        fs.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.delete_file(temporary)
        raise


def _upload(local: str, fs: pafs.FileSystem, path: str) -> None:
    """Not by `pyarrow.fs.copy_files`: pyarrow 26 leaves out that an upload to S3 failed; closing a stream tells it."""
    with open(local, "rb") as file, fs.open_output_stream(path) as stream:
        shutil.copyfileobj(file, stream, _COPIED_AT_ONCE)


def copy_file(source_fs: pafs.FileSystem, source: str, fs: pafs.FileSystem, path: str) -> None:
    """One file, which appears under `path` all at once. Raises `DataError`: `path` cannot be written."""
    with source_fs.open_input_stream(source) as file, open_atomic(fs, path) as stream:
        shutil.copyfileobj(file, stream, _COPIED_AT_ONCE)


def copy_folder(source_fs: pafs.FileSystem, source: str, fs: pafs.FileSystem, path: str) -> None:
    """All files of a folder and those below it. Raises `DataError`: one cannot be written."""
    fs.create_dir(path, recursive=True)
    for info in source_fs.get_file_info(pafs.FileSelector(source, recursive=True)):
        own = f"{path}/{posixpath.relpath(info.path, source)}"
        if info.is_file:
            copy_file(source_fs, info.path, fs, own)
        else:
            fs.create_dir(own, recursive=True)


def write_atomic(fs: pafs.FileSystem, path: str, content: bytes) -> None:
    with open_atomic(fs, path) as stream:
        stream.write(content)


def write_table_atomic(fs: pafs.FileSystem, path: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """`table` as one Parquet file, zstd-compressed, under `path` all at once."""
    with open_atomic(fs, path) as stream:
        pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size)


def _split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """The part before the first path segment with a glob, and a pattern for what lies below it."""
    if not is_url(path) and os.path.exists(path):
        return path, None
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if _GLOB.search(part)), None)
    if first is None:
        return path, None
    base = "/".join(parts[:first]) or ("/" if path.startswith("/") else ".")
    try:
        return base, re.compile(_glob_regex("/".join(parts[first:])))
    except re.error as error:
        raise DataError(
            f"'{path}' is no glob ({error}); write `[...]` around the characters that one may be."
        ) from None


def _glob_regex(pattern: str) -> str:
    """`**/` any folders, `*` anything inside one name, `[...]` one of these characters."""
    tokens = re.findall(r"\*\*/?|\*|\[[^\]]+\]|[^*\[]+|\[", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(
        known.get(token) or (token.replace("[!", "[^") if re.fullmatch(r"\[.+\]", token) else re.escape(token))
        for token in tokens
    )


def _frame(base: str, root: str) -> tuple[str, str]:
    """What stands around the inner path in a URL: `s3://` before, `?region=...` after."""
    if not is_url(base):
        return "", ""
    address, mark, query = base.partition("?")
    address = address.rstrip("/")
    return address.removesuffix(root.rstrip("/")), mark + query


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
