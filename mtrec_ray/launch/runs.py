"""The run folder `<cluster.storage>/<name>/`: whether a run may start, go on, or must be refused."""

import json
from typing import Any

import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump, parse
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.launch.jobs import absolute
from mtrec_ray.train import start

CONFIG, SUMMARY, REPORT = start.CONFIG, start.SUMMARY, "report.html"
RAY_FOLDER = ".ray"
"""Below the run folder: Ray Train's own files with the latest checkpoint, until the run is finished."""
_MAY_CHANGE = ("name", "cluster", "evaluate", "plugins", "compare")
"""Parts of the config with which a started run may go on."""


class RunFolder:
    """A run's folder, local or a URL."""

    def __init__(self, path: str) -> None:
        self.path = absolute(path).rstrip("/")
        self._filesystem, self._root = open_fs(self.path)

    @classmethod
    def of(cls, run: Run) -> "RunFolder":
        return cls(f"{run.cluster.storage.rstrip('/')}/{run.name}")

    def has(self, name: str) -> bool:
        return bool(self._filesystem.get_file_info(f"{self._root}/{name}").type == pafs.FileType.File)

    def read(self, name: str) -> str:
        with self._filesystem.open_input_stream(f"{self._root}/{name}") as file:
            text: str = file.read().decode()
        return text

    def write(self, name: str, text: str) -> None:
        write_atomic(self._filesystem, f"{self._root}/{name}", text.encode())

    def delete(self, name: str = "") -> None:
        """A folder below the run folder, or all of it; nothing there is fine."""
        path = f"{self._root}/{name}".rstrip("/")
        if self._filesystem.get_file_info(path).type == pafs.FileType.Directory:
            self._filesystem.delete_dir(path)

    def open(self, run: Run, overwrite: bool) -> None:
        """Makes the folder ready for `run`: a new one, one that goes on, or an old one that is replaced.

        Raises:
            ConfigError: a finished run is there, or one that was started with another config.
        """
        if overwrite:
            self.delete()
        if self.has(REPORT):
            raise ConfigError(
                f"{self.path} holds a finished run. Choose another name (--set name=...), or replace it (--overwrite)."
            )
        if self.has(CONFIG):
            self.check_same(run)
        self._filesystem.create_dir(self._root, recursive=True)
        self.write(CONFIG, dump(run))

    def check_same(self, run: Run) -> None:
        """Raises `ConfigError` if the run that is there was started with another config."""
        _check_same(self.path, self.config(), run)

    def config(self) -> Run:
        """The run's resolved config. Raises `DataError` if the folder is not a run's."""
        if not self.has(CONFIG):
            raise DataError(
                f"{self.path} holds no {CONFIG}, so it is not the folder of a run; `mtrec train` makes one."
            )
        return parse(self.read(CONFIG), source=f"{self.path}/{CONFIG}")

    def summary(self) -> dict[str, Any]:
        """What training left: `prepared`, `steps`, `best_step`, `best_metric`, `throughput`, `peak_memory_mib`,
        `trained_parameters`. Raises `DataError`."""
        if not self.has(SUMMARY):
            raise DataError(f"{self.path} holds no finished training; `mtrec train` with its config goes on with it.")
        found: dict[str, Any] = json.loads(self.read(SUMMARY))
        return found


def _check_same(path: str, before: Run, now: Run) -> None:
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    changed = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in _MAY_CHANGE and old.get(key) != new.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{path} holds a run with another config ({'; '.join(changed[:5])}). Go on with its "
            "config, choose another name (--set name=...), or replace it (--overwrite)."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted path: value} of a nested dictionary."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
