import pytest

from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.errors import DataError
from tests.data.by_hand import bucket, config

NO_TABLES = Tables(None, None)
TASKS = {"buy": {"kind": "conversion", "label": "buy", "parent": "click"}, "click": {"label": "click"}}


def fitted(pairs, **settings):
    """Task entries of rows with these labels of click and buy, dealt to two buckets."""
    run = config(tasks=TASKS, **settings)
    rows = [
        {"user": str(n), "item": str(n), "time": n, "row_id": n, "click": click, "buy": buy}
        for n, (click, buy) in enumerate(pairs)
    ]
    parts = [collect(bucket(run, rows[b::2]), run, NO_TABLES, 10**6) for b in range(2)]
    return fit(Gathered.of(parts), run, NO_TABLES).tasks


def test_the_parents_mean_is_of_the_rows_on_which_both_labels_are_observed():
    buy, click = fitted([(1, 1), (1, 0), (0, 0), (0, 0), (0, 0), (1, None), (None, 0)])
    assert (buy.parent, buy.parent_mean) == ("click", pytest.approx(2 / 5))
    assert (click.parent, click.parent_mean) == (None, None)


def test_labels_only_where_the_parent_happened_show():
    buy, click = fitted([(1, 1), (1, 0), (0, None), (0, None)])
    assert buy.parent_mean == 1
    assert click.mean == 0.5


def test_labels_that_never_meet_have_no_parents_mean():
    assert fitted([(1, None), (None, 0)])[0].parent_mean is None


def test_steps_without_their_parent_are_refused_where_they_are_many():
    pairs = [(1, 1)] * 95 + [(0, 1)] * 5
    with pytest.raises(DataError, match=r"tasks.buy: 5 of 100 train rows with label 1 have label 0 of its parent 'cl"):
        fitted(pairs)
    assert fitted(pairs, data__max_bad_share=0.05)[0].parent_mean == pytest.approx(0.95)


def test_data_is_prepared_again_for_another_parent():
    free = {**TASKS, "buy": {"label": "buy"}}
    assert settings(config(tasks=free)) != settings(config(tasks={**free, "buy": {"label": "buy", "parent": "click"}}))
