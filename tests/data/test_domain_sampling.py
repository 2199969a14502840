"""Domains of which a share is kept: what is kept counts for what is not, and lists stay whole."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.config import Augment
from mtrec_ray.config_file import validate
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.augment.domains import check_domains, check_known_domains
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.kinds import check_run
from mtrec_ray.train.augmentation import open_augmenter
from tests.batches import make_run
from tests.data.by_hand import config
from tests.data.test_augment import collator, request_rows, steps
from tests.fixtures import write_prepared

DOMAINS = ("", "home", "search")
HOME, SEARCH = 1, 2


def augmenter(seed: int = 0, **switches) -> Augmenter:
    return Augmenter(Augment(**switches), seed, domains=DOMAINS)


def in_domains(table: pa.Table, *of_requests: list[int]) -> pa.Table:
    place = table.schema.get_field_index("domain")
    return table.set_column(place, "domain", pa.array(of_requests, pa.list_(pa.int32())))


def lists(copies: int = 1) -> pa.Table:
    """Two requests, the first of which showed two lists at home and one in the search; and copies of both."""
    labels = [(0, 0.0), (0, 1.0), (2, 0.0), (2, 0.0), (2, 1.0), (3, 0.0)]
    table = request_rows(*[([1] * 3, labels), ([1], [(1, 0.0), (1, float("nan"))])] * copies)
    return in_domains(table, *[[HOME] * 5 + [SEARCH], [SEARCH, 0]] * copies)


@pytest.mark.parametrize("negatives", [1.0, 0.5])
def test_what_is_kept_counts_for_what_is_not(negatives: float) -> None:
    """Sums over kept rows are those over all rows in the mean, also where negatives are thinned again."""
    copies, times = 40, 50
    table, collate, weights = lists(copies), collator(), defaultdict(float)
    for step in range(times):
        batch = collate(augmenter(domains={"home": 0.25, "search": 0.5}, negatives=negatives)(table, step))
        for row_id, weight in zip(batch.row_ids.tolist(), batch.label_weights[:, 0].tolist(), strict=True):
            weights[row_id % 200] += weight / (copies * times)
            if negatives == 1:
                assert weight == {5: 2.0, 100: 2.0, 101: 1.0}.get(row_id % 200, 4.0)
    assert weights[101] == pytest.approx(1)
    assert len(weights) == 8
    for weight in weights.values():  # deviations of a mean of 2000: 0.04, and 0.06 with negatives
        assert weight == pytest.approx(1, abs=0.25)


def test_what_was_shown_together_stays_or_goes_together() -> None:
    kept = [collator()(augmenter(domains={"home": 0.5})(lists(), step)).row_ids.tolist() for step in range(200)]
    shown = {frozenset(row for row in rows if row < 10_005) for rows in kept}
    first, second = {10_000, 10_001}, {10_002, 10_003, 10_004}
    assert shown == {frozenset(), frozenset(first), frozenset(second), frozenset(first | second)}
    assert all({10_005, 10_100, 10_101} <= set(rows) for rows in kept)  # not named, or of no domain


def test_draws_are_of_the_step_and_the_list_alone(tmp_path) -> None:
    write_prepared(tmp_path)
    changed = augmenter(domains={"home": 0.4})

    def rows(step) -> list[int]:
        return sorted(row for batch in step.batches for row in batch.row_ids.tolist())

    whole = [rows(step) for step in steps(str(tmp_path), augment=changed)]
    ranks = [steps(str(tmp_path), rank=rank, augment=changed, world_size=2) for rank in (0, 1)]
    assert [sorted(rows(a) + rows(b)) for a, b in zip(*ranks, strict=True)] == whole
    assert [rows(step) for step in steps(str(tmp_path), first=3, augment=changed)] == whole[3:]
    packed = [rows(step) for step in steps(str(tmp_path), augment=changed, micro_tokens=10)]
    assert packed == whole
    other = [rows(step) for step in steps(str(tmp_path), augment=augmenter(1, domains={"home": 0.4}))]
    assert other != whole


def test_the_runs_augmenter_knows_the_domains_of_the_data(tmp_path) -> None:
    manifest = write_prepared(tmp_path)
    run = make_run("augment.domains={search: 1e-9}", "data.columns.domain=surface")
    found = open_augmenter(run, str(tmp_path), manifest)
    assert found is not None
    batches = [b for step in steps(str(tmp_path), augment=found) for b in step.batches]
    assert {int(d) for b in batches for d in b.domain} == {0, HOME}


def test_domains_that_are_not_there_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"augment\.domains needs data\.columns\.domain, which is not set"):
        check_domains(make_run("augment.domains={home: 0.5}"))
    run = make_run("augment.domains={hoem: 0.5}", "data.columns.domain=surface")
    check_domains(run)
    with pytest.raises(ConfigError, match=r"no train row is of domain 'hoem'\. Did you mean 'home'\?"):
        check_known_domains(run, write_prepared(tmp_path))
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match=r"augment\.domains\.home"):
            validate({**config().model_dump(mode="json"), "augment": {"domains": {"home": share}}})


def test_lists_that_an_objective_is_about_are_all_kept() -> None:
    tasks = {"like": {"label": "like", "feedback_delay": 0}, "new": {"kind": "novelty", "parent": "like"}}
    run = config(tasks=tasks, features__aggregates=["item"])
    check_run(run)
    with pytest.raises(ConfigError, match=r"augment\.domains leaves out lists of home, but task 'new'"):
        check_run(run.model_copy(update={"augment": Augment(domains={"home": 0.5})}))


def test_a_share_of_one_changes_no_row() -> None:
    found = collator()(augmenter(domains={"home": 1.0})(lists(), 0))
    expected = collator()(lists())
    np.testing.assert_array_equal(found.row_ids, expected.row_ids)
    np.testing.assert_array_equal(found.label_weights, expected.label_weights)
