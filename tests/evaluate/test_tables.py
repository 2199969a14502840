"""Which baseline a verdict compares with."""

import pytest

from mtrec_ray.evaluate.tables import references, slice_rows, verdicts

NAMES = ("auc", "logloss", "calibration", "gauc")


def difference(**values: float) -> dict[str, dict]:
    return {name: {"value": value, "interval": [value - 0.01, value + 0.01]} for name, value in values.items()}


@pytest.fixture
def entry() -> dict:
    """AUC 0.70 of the model; popularity 0.60, running rates 0.72, trees 0.71; log loss 0.50 and 0.40, 0.55, 0.52; only
    the trees have a GAUC."""
    whole = {
        "popularity": difference(auc=0.10, logloss=0.10, calibration=0.5),
        "running_rates": difference(auc=-0.02, logloss=-0.05, calibration=-0.9),
        "gbdt": difference(auc=-0.01, logloss=-0.02, gauc=0.03),
        "constant": difference(auc=0.20),
    }
    part = {
        "popularity": difference(auc=-0.30),
        "running_rates": difference(auc=0.04),
        "gbdt": difference(auc=0.01),
        "constant": {},
    }
    figures = {"auc": 0.6, "logloss": 0.7, "n": 1200, "positives": 30, "intervals": {"auc": None, "logloss": None}}
    return {"difference": whole, "slices": {"user in train": figures | {"difference": part}}}


def test_each_metric_has_the_baseline_that_leaves_the_model_the_smallest_lead(entry):
    assert references(NAMES, entry) == {"auc": "running_rates", "logloss": "popularity", "gauc": "gbdt"}


def test_no_other_choice_makes_the_model_look_worse(entry):
    sign = {"auc": 1, "logloss": -1, "gauc": 1}
    for name, best in references(NAMES, entry).items():
        leads = [sign[name] * found[name]["value"] for found in entry["difference"].values() if name in found]
        assert sign[name] * entry["difference"][best][name]["value"] == min(leads)


def test_verdicts_name_their_own_baseline(entry):
    found = {
        verdict.metric: (verdict.value, verdict.against, verdict.tone)
        for verdict in verdicts(references(NAMES, entry), entry)
    }
    assert found == {
        "AUC": ("−0.0200", "running rates", "worse"),
        "log loss": ("+0.1000", "popularity", "worse"),
        "GAUC": ("+0.0300", "gradient-boosted trees", "better"),
    }


def test_a_slice_is_compared_with_the_best_baselines_of_all_rows(entry):
    (row,) = slice_rows(("auc", "logloss"), entry)
    assert {title: (verdict.value, verdict.against) for title, verdict in row["verdicts"].items()} == {
        "AUC": ("+0.0400", "running rates")
    }


def test_without_baselines_there_is_no_verdict():
    assert references(NAMES, {"difference": {}}) == {}
