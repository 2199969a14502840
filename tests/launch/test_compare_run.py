"""A small comparison on generated logs: real trainings in Ray, interrupted once, to the page."""

import json
from pathlib import Path

import pytest

from mtrec_ray.data.sample import write_sample
from mtrec_ray.launch import compare as verb
from tests.launch.sample_runs import sample_config, scores

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TASKS = "tasks={click: {label: click, feedback_delay: 30s}, dwell: {kind: regression, label: log(1 + dwell_s)}}"
SMALL = [
    TASKS,
    "data.buckets=2",
    "backbone=none",
    "train={max_steps: 5, log_every: 1}",
    "evaluate={baselines: [constant], bootstrap: 0}",
    "compare.seeds=1",
]


def test_an_interrupted_comparison_goes_on_to_its_page(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(str(tmp_path / "logs"), users=30, items=30, days=8, shards=1)
    run = sample_config(tmp_path, "pays", *SMALL)
    folder = tmp_path / "runs/pays"
    train_prepared, started = verb.train_prepared, []

    def interrupted(run, prepared, own):
        started.append(run.name)
        if len(started) == 2:
            raise KeyboardInterrupt
        train_prepared(run, prepared, own)

    monkeypatch.setattr(verb, "train_prepared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verb.compare(run)
    first = scores(str(folder / "alone-click-seed0"))
    done = verb.compare(run)
    assert started == ["alone-click-seed0", "alone-dwell-seed0", "alone-dwell-seed0", "sum-seed0"]
    assert done.failed == 0
    for name, values in scores(str(folder / "alone-click-seed0")).items():
        assert (values == first[name]).all()

    found = json.loads((folder / "compare.json").read_text())
    assert done.report == f"{folder}/report.html"
    assert "does learning together pay?" in Path(done.report).read_text()
    change = found["differences"]["sum"]["click"]["auc"]
    metrics = {
        name: json.loads((folder / name / "metrics.json").read_text())["splits"]["test"]["tasks"]["click"]["auc"]
        for name in ("alone-click-seed0", "sum-seed0")
    }
    assert change["mean"] == pytest.approx(metrics["sum-seed0"] - metrics["alone-click-seed0"])
    assert change["mean"] != 0
    cost = found["cost"]["variants"]["sum"]
    assert cost["steps"] == 5
    assert 0 < cost["seconds"] < 60
    assert 50 < cost["peak_memory_mib"] < 10_000
    assert cost["trained_parameters"] > 1000
    assert found["conflict"]["sum"]["cosines"].keys() == {"click~dwell"}
    assert -1 <= found["conflict"]["sum"]["cosines"]["click~dwell"] <= 1
    assert found["baselines"]["constant"]["click"]["auc"] == 0.5
