"""Ranks of positives among all items, and runs of tasks that match from start to end."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train import checkpoint, ranks
from mtrec_ray.train.building import adapt
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.ranks import CatalogueRanks
from mtrec_ray.train.stack import Stack
from mtrec_ray.train.worker import Fitted, TrainingData, fit
from tests.batches import ITEMS, make_request
from tests.matching import COLD, TASKS, catalogue, manifest, matching_batch, matching_model, matching_run
from tests.training import CPU, Source, distance, facts_of, small_backbone, small_model

EXCLUDING = "tasks.interest.params.exclude_seen=true"
REQUESTS = [make_request(n) for n in range(30)]


def scored(run: Run, batch: Batch, vectors: bool = False) -> Recommender:
    model = matching_model(run, vectors=vectors).eval()
    model(batch)
    return model


def batch_of(requests: list[dict[str, Any]], vectors: bool = False) -> Batch:
    """Some candidates are items that train does not know, and of two that nothing tells apart; with `vectors` a third
    one differs from these in nothing else."""
    batch = matching_batch(requests, vectors=vectors)
    cold = batch.row_ids % 3 == 0
    rows = torch.where(cold, ITEMS + batch.row_ids % COLD, batch.catalogue)
    times = 1_000_000_000 + 40 * (rows - 10 + batch.row_ids % 9)
    return replace(batch, catalogue=rows, item_index=torch.where(cold, 0, batch.item_index), times=times)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("at_once", "vectors"), [(1, False), (3 * (ITEMS + COLD), True), (1 << 24, False)])
def test_ranks_are_those_of_brute_force(
    at_once: int, vectors: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_SCORES_AT_ONCE", at_once)
    run, batch = matching_run(EXCLUDING, f"matching.shared={shared}"), batch_of(REQUESTS, vectors)
    items, model = catalogue(vectors), scored(run, batch, vectors)
    found = CatalogueRanks(model, build_kinds(manifest(), run.tasks)).of(batch)
    tied = 0
    assert model.matcher is not None
    for column, task, excludes in ((1, "next", False), (2, "interest", True)):
        pair = model.matcher.pair_of(task)
        assert pair.user is not None
        scores = pair.user @ pair.items(torch.arange(len(items)), None).detach().T
        for c in range(batch.num_candidates):
            own, time = int(batch.catalogue[c]), int(batch.times[c])
            first, end = int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])
            out = set(batch.event_catalogue[first:end].tolist()) if excludes else set()
            others = [j for j in range(len(items)) if j != own and items.first_seen[j] <= time and j not in out]
            before = [j for j in others if float(scores[c, j]) >= float(scores[c, own]) - 1e-6]
            tied += any(abs(float(scores[c, j] - scores[c, own])) < 1e-6 for j in others)
            expected = (1 + len(before), 1 + len(others)) if batch.labels[c, column] == 1 else (0, 0)
            assert (found[task].rank[c], found[task].size[c]) == expected
    assert tied > 0, "no positive stands beside an item with the same vector"
    assert (found["interest"].size > 0).any()
    assert len({*found["next"].size.tolist()}) > 5, "items come into being"


def test_items_are_told_apart_by_all_that_is_known_of_them() -> None:
    """Of the four items that train does not know, three have the same text and categories."""
    for vectors, expected in ((False, [0, 1, 2, 2]), (True, [0, 1, 2, 2])):
        items = catalogue(vectors)
        first, which = ranks.told_apart(items, items.index[:, None])
        assert (which[first] == np.arange(len(first))).all()
        assert (which[ITEMS:] - which[ITEMS]).tolist() == expected
        assert len(set(which[:ITEMS].tolist())) == ITEMS
    without = replace(catalogue(vectors=True), vectors=None, item_row=None)
    _, which = ranks.told_apart(without, without.index[:, None])
    assert (which[ITEMS:] - which[ITEMS]).tolist() == [0, 1, 0, 0]


def test_an_item_that_nobody_knows_since_when_it_exists_is_ranked_in_no_log() -> None:
    batch = batch_of(REQUESTS)
    found = CatalogueRanks(scored(matching_run(), batch), build_kinds(manifest(), matching_run().tasks)).of(
        replace(batch, times=torch.full_like(batch.times, NEVER - 1))
    )
    sizes = found["next"].size[found["next"].size > 0]
    unknown = batch.catalogue.numpy()[found["next"].size > 0] == ITEMS + COLD - 1
    assert sizes.tolist() == np.where(unknown, ITEMS + COLD, ITEMS + COLD - 1).tolist()
    assert not unknown.all()


class Requests(Source):
    """In two micro-steps."""

    per_epoch = 3

    def __init__(
        self, valid: bool = False, fails_at: int | None = None, tokens: bool = True, vectors: bool = False
    ) -> None:
        super().__init__(valid, fails_at)
        self.tokens, self.vectors = tokens, vectors

    def batches(self, numbers: list[int]) -> list[Batch]:
        requests = [make_request(number) for number in numbers]
        return [matching_batch(part, self.tokens, vectors=self.vectors) for part in (requests[:3], requests[3:])]


RUN = (
    "train.learning_rate={adapters: 0.01, towers: 0.01, tables: 0.01}",
    "train.epochs=2",
    "train.metric=next/ndcg@10",
    "train.patience=null",
)


def train(folder: Path, *overrides: str, fails_at: int | None = None) -> Fitted:
    """On data with vectors."""
    run = matching_run(*RUN, *overrides)
    has_text = run.backbone.name != "none"
    sources = (
        Requests(fails_at=fails_at, tokens=has_text, vectors=True),
        Requests(valid=True, tokens=has_text, vectors=True),
    )
    data, about = TrainingData(*sources, facts_of, catalogue(vectors=True)), manifest(vectors=True)
    return fit(run, about, data, LocalContext(folder), lambda: small_backbone(run) if has_text else None)


def valid_lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "valid"]


def test_a_metric_of_ranks_chooses_and_a_resumed_run_is_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "backbone=nano")
    figures = [line["next/ndcg@10"] for line in valid_lines(tmp_path / "whole")]
    assert len(figures) == 2
    assert all(0 < value < 1 for value in figures)
    assert whole.best_metric == max(figures)
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path / "stopped", "backbone=nano", fails_at=4)
    resumed = train(tmp_path / "stopped", "backbone=nano")
    assert distance(resumed.engine.parameters(), whole.engine.parameters()) == 0
    assert valid_lines(tmp_path / "stopped") == valid_lines(tmp_path / "whole")
    names = checkpoint.read(tmp_path / "whole/checkpoint").parameters.keys()
    assert "matcher.pairs.0.items.table.weight" in names
    assert {"matcher.pairs.0.items.projections.0.linear.weight", "matcher.pairs.0.users.projections.0.missing"} <= names
    assert not any("first_seen" in name or name.endswith(("items.ids", "items.declared")) for name in names)


def test_a_metric_without_positives_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    few = [task.model_copy(update={"positives": {"train": 5, "valid": 0, "test": 0}}) for task in TASKS]
    run = matching_run(*RUN)
    data = TrainingData(Requests(), Requests(valid=True), facts_of, catalogue())
    with pytest.raises(ConfigError, match=r"next/ndcg@10: no row with label 1"):
        fit(run, manifest(few), data, LocalContext(tmp_path), lambda: None)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_trials_in_a_stack_have_the_weights_and_ranks_that_they_have_alone(tmp_path: Path) -> None:
    """Two trials with other negatives."""
    small = ("backbone={name: nano, width: 16, layers: 2, heads: 2}", "adapter={rank: 2, alpha: 4}", *RUN[:2])
    runs = [
        matching_run(*small, "tasks.next.params.negatives=4", "train.metric=next/ndcg@10"),
        matching_run(*small, "seed=3", "tasks.interest.params.exclude_seen=true", "train.metric=interest/mrr"),
    ]

    def data() -> TrainingData:
        return TrainingData(Requests(), Requests(valid=True), facts_of, catalogue())

    def adapted(run: Run) -> Backbone:
        backbone = Backbone(small_model())
        adapt(backbone, run)
        return backbone

    for n in range(2):
        (tmp_path / f"stacked{n}").mkdir()
    stack = Stack(Backbone(small_model()), manifest(), runs[0], CPU)
    with ThreadPoolExecutor(2) as pool:
        pending = [
            pool.submit(stack.fit, n, run, data(), str(tmp_path / f"stacked{n}"), lambda metrics, folder: None)
            for n, run in enumerate(runs)
        ]
        stacked = [one.result(timeout=60) for one in pending]
    for n, (run, found) in enumerate(zip(runs, stacked, strict=True)):
        folder = tmp_path / f"alone{n}"
        alone = fit(run, manifest(), data(), LocalContext(folder), partial(adapted, run))
        assert distance(found.engine.parameters(), alone.engine.parameters()) < 1e-5
        for name in ("next/ndcg@10", "interest/mrr"):
            figures = [[line[name] for line in valid_lines(f)] for f in (folder, tmp_path / f"stacked{n}")]
            assert figures[0] == pytest.approx(figures[1])
