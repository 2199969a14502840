"""A task without a label, as an objective over what is shown: nothing is observed, known or counted of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.features.side_features import number_names
from mtrec_ray.data.features.signals import signals
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.kinds import KINDS
from tests.data.by_hand import behaviours, bucket, config
from tests.data.encoding import encoded
from tests.data.log_files import read

SHELF = {"kind": "diversity"}
IMPRESSIONS = {"like": {"label": "like", "feedback_delay": 0}, "shelf": SHELF}
BEHAVIOURS = {"like": {"event": "LIKE"}, "shelf": SHELF}
SHOWN = [
    {"user": "1", "item": "7", "time": 0, "like": 1, "type": "VIEW", "event": "VIEW"},
    {"user": "1", "item": "7", "time": 1, "like": 1, "type": "LIKE", "event": "LIKE"},
    {"user": "1", "item": "8", "time": 5, "like": 0, "type": "VIEW", "event": "VIEW"},
]


def runs() -> list[Run]:
    return [config(tasks=IMPRESSIONS), behaviours(tasks=BEHAVIOURS)]


@pytest.mark.parametrize("run", runs(), ids=["impressions", "behaviours"])
def test_no_label_no_feedback_no_aggregate_and_nothing_observed(run: Run) -> None:
    built = bucket(run, SHOWN)
    assert np.isnan(built.labels[:, 1]).all()
    assert not np.isnan(built.labels[:, 0]).any()
    assert np.isnan(built.events.feedback[:, 1]).all()
    assert [signal.task for signal in signals(run)] == ["like"]
    alone = run.model_copy(update={"tasks": {"like": run.tasks["like"]}})
    assert number_names(run) == number_names(alone)
    result, _, fitted = encoded(run, SHOWN)
    entry = fitted.tasks[1]
    assert (entry.kind, entry.labels) == ("diversity", "none")
    assert entry.observed == entry.positives == {"train": 0, "valid": 0, "test": 0}
    assert (entry.mean, entry.std) == (0, 0)
    (request,) = result.requests["train"].to_pylist()
    assert np.isnan(np.reshape(request["labels"], (-1, 2))[:, 1]).all()
    (other,) = encoded(alone, SHOWN)[0].requests["train"].to_pylist()
    np.testing.assert_array_equal(request["numbers"], other["numbers"])


def test_it_is_read_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,like\n1,2,1600000000,1\n")
    table = read(config(tasks=IMPRESSIONS, data__logs=str(tmp_path / "log.csv"))).table
    assert np.isnan(table["label.shelf"].to_numpy()).all()
    assert table["feedback_time.shelf"].null_count == 1


@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_what_a_guest_s_kind_needs_is_checked_before_the_log_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests: dict[str, Any] = {
        "labelled": type("Labelled", (), {"labels": "number"}),
        "unlabelled": type("Unlabelled", (), {"labels": "none"}),
    }
    monkeypatch.setattr(KINDS, "_parts", KINDS._parts | guests)
    (tmp_path / "log.csv").write_text("user,item,time,like\n1,2,1600000000,1\n")
    settings = {"data__logs": str(tmp_path / "log.csv")}
    without, labelled = (
        config(**settings, tasks={"t": {"kind": kind}}),
        config(**settings, tasks={"t": {"kind": kind, "label": "like"}}),
    )
    wrong, right = (without, labelled) if kind == "labelled" else (labelled, without)
    check_log(find_files(right.data), right)
    message = "needs a label; give `label`" if kind == "labelled" else "has no label; remove `label`"
    with pytest.raises(ConfigError, match=rf"tasks\.t: kind '{kind}' {message}"):
        check_log(find_files(wrong.data), wrong)


def test_an_aggregate_that_names_it_is_refused() -> None:
    run = config(tasks=IMPRESSIONS, features__aggregates=["user : like, shelf"])
    with pytest.raises(ConfigError, match=r"features\.aggregates\[0\].* names task 'shelf', which has no label"):
        number_names(run)
