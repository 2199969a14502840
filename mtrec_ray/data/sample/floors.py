"""Floors: what simple methods reach on the test rows. They read the log alone and know no parameter of the generator.

As-of counts hold what was known strictly before the row; what is fitted, is fitted on the rows before the train
boundary with the labels known by then, all of them or `MAX_ROWS` drawn evenly.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mtrec_ray.data.sample.asof import Ledger
from mtrec_ray.data.sample.exposures import Exposures
from mtrec_ray.data.sample.population import Array, Items, Users
from mtrec_ray.data.sample.scenario import HOUR, Scenario, Size, Stage

MAX_ROWS = 400_000
_PRIOR = 10.0
"""Rows at the mean rate that a running rate starts with."""
_STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse penalties of the logistic regressions; the one with the best log loss on the validation rows is taken."""
FLOORS = ("popularity", "running rates", "ids", "text", "trees")


@dataclass(frozen=True)
class Periods:
    """Which rows [N] a stage's floors learn from, choose by, and are judged on; all with an observed label."""

    train: Array
    valid: Array
    test: Array

    @classmethod
    def of(cls, log: Exposures, scenario: Scenario, stage: Stage, size: Size, bot: Array) -> "Periods":
        """A row counts if its window was over by the train boundary, others if it was by the end of the log, as
        `data.requests.attribution` has it."""
        labelled = ~np.isnan(log.labels[stage.name])
        train, test = log.time < size.train_until, log.time >= size.valid_until
        decided = log.time + (stage.window if stage.parent is not None else 0) <= _log_end(log, scenario)
        return cls(
            labelled & train & (log.time + stage.window <= size.train_until),
            labelled & ~train & ~test & decided,
            labelled & test & decided & ~bot,
        )


def _log_end(log: Exposures, scenario: Scenario) -> int:
    """The last time that the log mentions: of a row, or of feedback that has a column of times."""
    dated = [stage.name for stage in scenario.stages if stage.parent is not None]
    return int(max([log.time[-1], *(log.known[name][log.labels[name] == 1].max(initial=0) for name in dated)]))


def scores(
    scenario: Scenario, items: Items, users: Users, log: Exposures, stage: Stage, rows: Periods
) -> dict[str, Array]:
    """By floor, a score for each test row, higher for a likelier label of 1."""
    label = log.labels[stage.name]
    rates = _Rates(log, stage, items, float(label[rows.train].mean()))
    fit, valid = _some(rows.train), _some(rows.valid)
    ids, text = _id_columns(log, len(users.segment), len(items.main)), _text_columns(log, items, fit)
    return {
        "popularity": rates.item_ones[rows.test],
        "running rates": rates.odds[rows.test],
        "ids": _linear(ids, label, fit, valid, rows.test),
        "text": _linear(text, label, fit, valid, rows.test),
        "trees": _trees(_tree_columns(scenario, items, users, log, rates), label, fit, valid, rows.test),
    }


class _Rates:
    """As-of counts of each row's user, item, and user with the item's category."""

    def __init__(self, log: Exposures, stage: Stage, items: Items, mean: float) -> None:
        label, known = log.labels[stage.name], log.known[stage.name]
        category = items.category[log.item]
        self.columns, rates = [], []
        for keys in (log.user, log.item, log.user * (int(category.max()) + 1) + category):
            count, ones = Ledger(keys, known, label).before(keys, log.time)
            rates.append((ones + _PRIOR * mean) / (count + _PRIOR))
            self.columns += [count, rates[-1]]
            if keys is log.item:
                self.item_ones = ones
        user, item, both = (np.log(rate / (1 - rate)) for rate in rates)
        self.odds = user + item + (both - user)


def _some(mask: Array) -> Array:
    rows = np.flatnonzero(mask)
    return rows if len(rows) <= MAX_ROWS else rows[np.linspace(0, len(rows) - 1, MAX_ROWS).astype(int)]


def _id_columns(log: Exposures, users: int, items: int) -> sparse.csr_matrix:
    """One column per user and per item."""
    columns = np.stack([log.user, users + log.item], axis=1).ravel()
    starts = np.arange(0, len(columns) + 1, 2)
    return sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(log), users + items))


def _text_columns(log: Exposures, items: Items, fit: Array) -> sparse.csr_matrix:
    """TF-IDF of the title's words, frequencies from the items of the train rows."""
    vectorizer = TfidfVectorizer().fit([items.titles[i] for i in np.unique(log.item[fit])])
    return vectorizer.transform(items.titles).tocsr()[log.item]


def _linear(columns: sparse.csr_matrix, label: Array, fit: Array, valid: Array, test: Array) -> Array:
    best, lowest = np.zeros(len(label)), np.inf
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=200).fit(columns[fit], label[fit])
        loss = _log_loss(label[valid], model.predict_proba(columns[valid])[:, 1])
        if loss < lowest:
            best, lowest = model.decision_function(columns[test]), loss
    return best


def _tree_columns(scenario: Scenario, items: Items, users: Users, log: Exposures, rates: _Rates) -> Array:
    """What the log and the tables say without text and ids, and the as-of rates and counts."""
    said = [
        np.log1p(log.position),
        log.age,
        items.price[log.item],
        log.time // HOUR % 24,
        log.domain,
        items.category[log.item],
    ]
    if not scenario.hidden_segments:
        said.append(users.segment[log.user])
    return np.stack([*rates.columns, rates.odds, *said], axis=1)


def _trees(columns: Array, label: Array, fit: Array, valid: Array, test: Array) -> Array:
    """Gradient-boosted trees; as many as have the best log loss on the validation rows."""
    model = HistGradientBoostingClassifier(max_iter=150, max_leaf_nodes=15, learning_rate=0.08, early_stopping=False)
    model.fit(columns[fit], label[fit])
    stages = model.staged_predict_proba(columns[valid])
    losses = [_log_loss(label[valid], p[:, 1]) if k % 10 == 9 else np.inf for k, p in enumerate(stages)]
    wanted = int(np.argmin(losses))
    return next(p[:, 1] for k, p in enumerate(model.staged_predict_proba(columns[test])) if k == wanted)


def _log_loss(label: Array, probability: Array) -> float:
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return float(-np.mean(np.log(np.where(label > 0, p, 1 - p))))
