import json
import subprocess
import sys
import typing
from typing import Any

import pytest
from pydantic import BaseModel

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump, load, override, parse
from mtrec_ray.errors import ConfigError

MINIMAL = """\
name: mine
data:
  logs: logs/*.parquet
  columns: {user: user_id, item: item_id, time: ts}
tasks:
  click: {label: click}
"""


def paths_of(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of all leaves of a nested dictionary."""
    paths = []
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        paths += paths_of(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return paths


def value_at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree[key]
    return tree


def another(value: Any, choices: list[Any]) -> Any:
    """A valid value of a key that differs from its present one."""
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return f"{value}x" if isinstance(value, str) else "auto"


def choices_of(dotted: str) -> list[Any]:
    """The members of a Literal key."""
    model: Any = Run
    for key in dotted.split("."):
        annotation = model.model_fields[key].annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if model is None:
            return [v for v in typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal]
    return []


OF_HASHED_IDS = ("features.user_rows", "features.item_rows", "features.hashes")


def plain_keys() -> list[str]:
    """Every scalar key that has a default and stands alone."""
    tree = parse(MINIMAL).model_dump(mode="json")
    needs_another = {"data.layout", "data.candidate_event", "split.by", "split.column", "features.aggregates"}
    return [
        path
        for path in paths_of(tree)
        if not path.startswith("tasks.")
        and not path.startswith("strategy.adaptive.")  # refused without `main`, see multitask/strategy/test_adaptive.py
        and path not in OF_HASHED_IDS  # refused without `features.ids: hashed`, see data/test_id_hashes.py
        and path != "data.time_zone"  # takes names of zones only, see data/test_log_times.py
        and path not in needs_another
        and isinstance(value_at(tree, path), bool | int | float | str)
    ]


@pytest.mark.parametrize("path", plain_keys())
def test_every_key_can_be_overridden(path):
    before = parse(MINIMAL).model_dump(mode="json")
    wanted = another(value_at(before, path), choices_of(path))
    after = parse(MINIMAL, [f"{path}={json.dumps(wanted)}"]).model_dump(mode="json")
    assert value_at(after, path) == wanted
    override(before, path, wanted)
    assert after == before  # and nothing else changed


def test_an_override_reads_yaml():
    run = parse(MINIMAL, ["towers.hidden=[8, 4]", "train.clip_norm=null", "train.learning_rate.adapters=1e-4"])
    assert run.towers.hidden == [8, 4]
    assert run.train.clip_norm is None
    assert run.train.learning_rate.adapters == 1e-4
    assert run.train.learning_rate.towers == parse(MINIMAL).train.learning_rate.towers


def test_a_part_of_defaults_is_completed_by_an_override():
    run = parse(MINIMAL + "backbone: nano\n", ["backbone.layers=3", "tasks.like.label=like"])
    assert (run.backbone.name, run.backbone.layers) == ("nano", 3)
    assert list(run.tasks) == ["click", "like"]


def test_the_resolved_config_reads_back_to_the_same(tmp_path):
    run = parse(MINIMAL, ["tasks.dwell={kind: regression, label: 'log(1 + dwell)', feedback_delay: 1h}"])
    (tmp_path / "config.yaml").write_text(dump(run))
    assert load(tmp_path / "config.yaml") == run
    assert dump(load(tmp_path / "config.yaml")) == dump(run)


def test_the_smallest_config_is_small():
    assert len(MINIMAL.splitlines()) <= 25
    assert parse(MINIMAL).train.epochs > 0


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("traim: {}", None, r"unknown key 'traim'\. Did you mean 'train'\?"),
        ("train: {epoch: 1}", None, r"unknown key 'train\.epoch'\. Did you mean 'epochs'\?.*batch_requests"),
        ("", "train.learning_rate.adapter=1", r"'train\.learning_rate\.adapter'\. Did you mean 'adapters'\?"),
        ("", "tasks.click.labl=x", r"'tasks\.click\.labl'\. Did you mean 'label'\?"),
        ("", "data.items={path: p, key: k, txt: t}", r"'data\.items\.txt'\. Did you mean 'text'\?"),
        ("", "backbone.nam=nano", r"'backbone\.nam'\. Did you mean 'name'\?"),
        ("", "cluster.zzz=1", r"'cluster\.zzz'\. Known: cpus_per_worker, gpus_per_worker"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(text, override, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse(MINIMAL + text, [override] if override else [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=many", r"'train\.epochs' is 'many': input should be a valid number"),
        ("engine.zero_stage=4", r"'engine\.zero_stage' is 4"),
        ("history.lag=soon", r"history\.lag: 'soon' is not a duration"),
        ("data.columns.user=null", r"'data\.columns\.user' is None"),
        ("split.by=column", r"split\.column belongs to split\.by: column"),
        ("no-equals-sign", r"--set no-equals-sign: expected dotted\.path=value"),
        ("train.epochs=[1", r"--set train\.epochs: not valid YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(override, message):
    with pytest.raises(ConfigError, match=message):
        parse(MINIMAL, [override])


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL, ["train.epochs=0", "engine.precision=fp64", "seeed=1"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"'data\.columns\.time' is required"):
        parse(MINIMAL.replace(", time: ts", ""))


@pytest.mark.parametrize("text", [MINIMAL + "name: again\n", MINIMAL + "train: {epochs: 1, epochs: 2}\n"])
def test_a_key_given_twice_is_refused(text):
    with pytest.raises(ConfigError, match="is given twice"):
        parse(text)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse(text)


@pytest.mark.parametrize("key", ["tasks", "history", "data.partitions"])
def test_a_part_that_is_no_mapping_is_refused(key):
    with pytest.raises(ConfigError, match=rf"'{key}' is \['click'\]: expected a mapping, `key: value` in each line\."):
        parse(MINIMAL, [f"{key}=[click]"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the config '.*absent\.yaml': No such file"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "latin1.yaml").write_bytes(MINIMAL.replace("mine", "caf\xe9").encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "latin1.yaml")


def test_off_is_a_word_and_false_is_false():
    run = parse(MINIMAL, ["backbone.packing=off", "history.exposures=false", "features.time=no"])
    assert run.backbone.packing == "off"
    assert (run.history.exposures, run.features.time) == (False, False)
    assert parse(dump(run)) == run


def test_dates_need_no_quotes():
    run = parse(MINIMAL + "split: {train_until: 2025-03-01, valid_until: 2025-04-01 12:00:00}\n")
    assert (run.split.train_until, run.split.valid_until) == ("2025-03-01", "2025-04-01 12:00:00")
    assert parse(dump(run)) == run


def test_numbers_with_an_exponent_are_numbers():
    assert parse(MINIMAL, ["towers.dropout=1e-3"]).towers.dropout == 0.001


def test_a_config_is_read_without_ray_or_torch():
    code = "import sys; import mtrec_ray.config_file; print({'ray', 'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
