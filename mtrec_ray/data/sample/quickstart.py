"""The sample of `mtrec quickstart`: sharded impressions, an item table, and a config that runs on them.

The probability that user u clicks item i, shown at `position` on day t, is the logistic function of

    base + activity_u + quality_i + style_i + taste_u(t) . topics_i - .35 price_i - .25 log(1 + position)

`topics_i` and `style_i` can be read in the title (among noise words), the first topic also in the column `topic`;
`quality_i` only in the item's id; the tastes, which drift a little, only in the user's history. Likes and purchases
are rare and only follow clicks; dwell time is observed on clicks only; a share of the users has not agreed to
purchase tracking. Everything is a function of the seed, file bytes included, and is made block by block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import open_atomic, open_fs, write_atomic
from mtrec_ray.data.reading.log_files import FileNumbers
from mtrec_ray.data.reading.logs import ROW_BITS
from mtrec_ray.data.sample.clearing import clear
from mtrec_ray.data.sample.words import NOISE, STYLES, TOPICS
from mtrec_ray.errors import ConfigError

_DAY = 86_400
_START = 1_704_067_200
"""2024-01-01T00:00:00Z."""
_BLOCK = 4096
"""Users, or items, made at once."""
_BINS = 20_000

_CONFIG = """\
name: sample
data:
  logs: {folder}/logs
  columns: {{user: user_id, item: item_id, time: time, request: request_id}}
  numbers: [position]
  items:
    path: {folder}/items.parquet
    key: item_id
    text: "{{title}}"
    categories: [topic]
    numbers: [price]
tasks:
  click: {{label: click, feedback_delay: 30s}}
  like: {{label: like, feedback_time: like_time}}
  purchase: {{label: purchase, feedback_delay: 1h}}
  dwell: {{kind: regression, label: log(dwell_s + 1), feedback_delay: 10m}}
"""


@dataclass(frozen=True)
class SampleSummary:
    folder: str
    rows: int
    requests: int
    users: int
    items: int
    rates: dict[str, float]
    """Share of ones among the observed labels of each binary signal."""
    oracle_auc: float
    """AUC of the true click probabilities: what no model can beat but by luck."""


@dataclass(frozen=True)
class _Items:
    topics: np.ndarray
    """float64 [N, K] shares that add up to one"""
    pull: np.ndarray
    """float64 [N] quality + style - price effect"""
    price: np.ndarray
    """float64 [N] standardised logarithm"""
    popularity: list[np.ndarray]
    """K + 1 cumulative distributions over `members`: one per topic, then all items."""
    members: list[np.ndarray]


@dataclass(frozen=True)
class _Users:
    first: int
    taste: np.ndarray
    """float64 [U, K]"""
    drift: np.ndarray
    """float64 [U, K] change of taste over the whole period"""
    activity: np.ndarray
    """float64 [U] bias of the click logit"""
    visits: np.ndarray
    """float64 [U] relative number of requests, mean 1"""
    tracked: np.ndarray
    """bool [U] purchases are observed"""


@dataclass
class _Tally:
    """Counts over all rows, in bounded memory."""

    rows: int = 0
    requests: int = 0
    seen: dict[str, list[int]] = field(default_factory=dict)
    clicks: np.ndarray = field(default_factory=lambda: np.zeros((2, _BINS), np.int64))

    def add(self, log: pa.Table, truth: np.ndarray) -> None:
        self.rows += log.num_rows
        self.requests += len(np.unique(log.column("request_id").to_numpy()))
        for name in ("click", "like", "purchase"):
            labels = log.column(name).drop_null().to_numpy()
            ones, observed = self.seen.get(name, [0, 0])
            self.seen[name] = [ones + int(labels.sum()), observed + len(labels)]
        bins = np.minimum((truth * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(self.clicks, (log.column("click").to_numpy(), bins), 1)

    def auc(self) -> float:
        """From the counts per bin of probability; ties count half, so it is exact to 1 / bins."""
        negatives, positives = self.clicks
        below = np.cumsum(negatives) - negatives / 2
        return float((positives * below).sum() / max(1, positives.sum() * negatives.sum()))


def write_sample(
    folder: str,
    seed: int = 0,
    users: int = 2000,
    items: int = 500,
    days: int = 30,
    shards: int = 8,
    requests_per_user: float = 8.0,
) -> SampleSummary:
    """Writes `logs/part-*.parquet` (one per range of days), `items.parquet`, `config.yaml` and `truth/part-*.parquet`.

    The truth is kept apart from the logs: `row_id` as prepared data has it, and `click`, its
    probability.

    Args:
        folder: local path or URL; logs that an earlier call wrote there are replaced.

    Raises:
        ConfigError: sizes that cannot be.
        DataError: the folder holds logs that are not ours.
    """
    if users < 1 or items < len(TOPICS) or not 1 <= shards <= days or requests_per_user <= 0:
        raise ConfigError(
            f"A sample needs at least 1 user, {len(TOPICS)} items, 1 to `days` shards and some requests; found users="
            f"{users}, items={items}, days={days}, shards={shards}, requests_per_user={requests_per_user}."
        )
    fs, root = open_fs(folder)
    clear(fs, root, folder)
    catalogue = _write_items(fs, f"{root}/items.parquet", seed, items)
    tally, numbers = _Tally(), FileNumbers()
    for shard in range(shards):
        span = (days * shard // shards, days * (shard + 1) // shards)
        rate = requests_per_user * (span[1] - span[0]) / days
        blocks = (
            _impressions(np.random.default_rng([seed, 2, shard, block]), catalogue, group, rate, span, days)
            for block, group in enumerate(_user_blocks(seed, users))
        )
        _write_shard(fs, root, shard, numbers, blocks, tally)
    write_atomic(fs, f"{root}/config.yaml", _CONFIG.format(folder=folder.rstrip("/")).encode())
    rates = {name: ones / max(1, observed) for name, (ones, observed) in tally.seen.items()}
    return SampleSummary(folder, tally.rows, tally.requests, users, items, rates, tally.auc())


def _write_items(fs: pafs.FileSystem, path: str, seed: int, count: int) -> _Items:
    topics, pull, prices = [], [], []
    with open_atomic(fs, path) as stream, _writer(stream, _ITEM_SCHEMA) as writer:
        for block, first in enumerate(range(0, count, _BLOCK)):
            rng = np.random.default_rng([seed, 0, block])
            table, shares, pulls, price = _make_items(rng, first, min(_BLOCK, count - first))
            writer.write_table(table)
            topics.append(shares)
            pull.append(pulls)
            prices.append(price)
    shares = np.concatenate(topics)
    popularity = 1 / (10 + np.random.default_rng([seed, 3]).permutation(count))
    main = shares.argmax(1)
    members = [np.flatnonzero(main == topic) for topic in range(len(TOPICS))] + [np.arange(count)]
    cumulative = [np.cumsum(popularity[group]) / popularity[group].sum() for group in members]
    return _Items(shares, np.concatenate(pull), np.concatenate(prices), cumulative, members)


_ITEM_SCHEMA = pa.schema(
    [("item_id", pa.int64()), ("title", pa.string()), ("topic", pa.string()), ("price", pa.float64())]
)
_LOG_SCHEMA = pa.schema(
    [
        ("request_id", pa.int64()),
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("time", pa.int64()),
        ("position", pa.int32()),
        ("click", pa.int8()),
        ("like", pa.int8()),
        ("purchase", pa.int8()),
        ("dwell_s", pa.float64()),
        ("like_time", pa.int64()),
    ]
)
_TRUTH_SCHEMA = pa.schema([("row_id", pa.int64()), ("click", pa.float64())])


def _writer(stream: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(stream, schema, compression="zstd")


def _make_items(
    rng: np.random.Generator, first: int, count: int
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    names = list(TOPICS)
    main = (first + np.arange(count)) % len(names)
    second = rng.integers(0, len(names), count)
    shares = np.zeros((count, len(names)))
    shares[np.arange(count), main] += 0.7
    shares[np.arange(count), second] += 0.3
    style = rng.integers(0, len(STYLES), count)
    price = rng.normal(size=count)
    pull = rng.normal(0, 0.6, count) + np.array(list(STYLES.values()))[style] - 0.35 * price
    words = [topic.split() for topic in TOPICS.values()]
    noise, styles = NOISE.split(), list(STYLES)
    titles = []
    for i in range(count):
        title = [*rng.choice(words[main[i]], 2, replace=False), rng.choice(words[second[i]])]
        title += [styles[style[i]], *rng.choice(noise, rng.integers(1, 4))]
        titles.append(" ".join(rng.permutation(title)))
    columns = [
        first + np.arange(count),
        titles,
        [names[topic] for topic in main],
        np.round(20 * np.exp(0.6 * price), 2),
    ]
    return pa.table(columns, schema=_ITEM_SCHEMA), shares, pull, price


def _user_blocks(seed: int, count: int) -> Iterator[_Users]:
    for block, first in enumerate(range(0, count, _BLOCK)):
        rng = np.random.default_rng([seed, 1, block])
        size = min(_BLOCK, count - first)
        yield _Users(
            first,
            taste=rng.normal(0, 1.6, (size, len(TOPICS))),
            drift=rng.normal(0, 0.6, (size, len(TOPICS))),
            activity=rng.normal(0, 0.5, size),
            visits=rng.lognormal(-0.32, 0.8, size),
            tracked=rng.random(size) < 0.7,
        )


def _impressions(
    rng: np.random.Generator, items: _Items, users: _Users, rate: float, span: tuple[int, int], days: int
) -> tuple[pa.Table, np.ndarray]:
    """Rows of one block of users in one range of days, by time, and their true click probabilities.

    Request ids count from 0 here.
    """
    visits = rng.poisson(rate * users.visits)
    user = np.repeat(np.arange(len(visits)), visits)
    evening = np.mod(rng.normal(20, 4, len(user)) * 3600, _DAY)
    time = _START + rng.integers(span[0], span[1], len(user)) * _DAY + evening.astype(np.int64)
    order = np.argsort(time, kind="stable")
    user, time = user[order], time[order]
    shown = rng.integers(3, 9, len(user))
    request = np.repeat(np.arange(len(user)), shown)
    position = np.arange(len(request)) - np.repeat(np.cumsum(shown) - shown, shown)
    item = _choose_items(rng, items, users.taste[user[request]])
    once = np.unique(request * np.int64(len(items.pull)) + item, return_index=True)[1]
    keep = np.sort(once)  # the same item twice in one list would be one candidate with two labels
    request, position, item = request[keep], position[keep], item[keep]
    user, time = user[request], time[request]
    now = (time - _START) / (days * _DAY) - 0.5
    liking = ((users.taste[user] + now[:, None] * users.drift[user]) * items.topics[item]).sum(1)
    truth = _logistic(-1.9 + users.activity[user] + items.pull[item] + liking - 0.25 * np.log1p(position))
    click = rng.random(len(item)) < truth
    like = click & (rng.random(len(item)) < _logistic(-3.3 + 0.9 * liking + 0.4 * items.pull[item]))
    purchase = click & (rng.random(len(item)) < _logistic(-2.9 + 0.5 * liking - 0.8 * items.price[item]))
    dwell = np.exp(3.2 + 0.35 * liking + 0.3 * items.pull[item] + rng.normal(0, 0.7, len(item)))
    delay = np.ceil(rng.lognormal(4.5, 1.8, len(item)))
    columns = [
        pa.array(request),
        pa.array(users.first + user),
        pa.array(item),
        pa.array(time),
        pa.array(position.astype(np.int32)),
        pa.array(click.astype(np.int8)),
        pa.array(like.astype(np.int8)),
        pa.array(purchase.astype(np.int8), mask=~users.tracked[user]),
        pa.array(np.round(dwell, 1), mask=~click),
        pa.array(time + delay.astype(np.int64), mask=~like),
    ]
    return pa.table(columns, schema=_LOG_SCHEMA), truth


def _choose_items(rng: np.random.Generator, items: _Items, taste: np.ndarray) -> np.ndarray:
    """int64 [rows]: half of what is shown is popular, half popular within a topic that the user tends to like."""
    weights = np.cumsum(np.exp(0.5 * taste), 1)
    topic = (rng.random((len(taste), 1)) * weights[:, -1:] > weights).sum(1)
    source = np.where(rng.random(len(taste)) < 0.5, topic, len(items.members) - 1)
    draw = rng.random(len(taste))
    item = np.zeros(len(taste), np.int64)
    for group, (members, cumulative) in enumerate(zip(items.members, items.popularity, strict=True)):
        rows = source == group
        item[rows] = members[np.minimum(np.searchsorted(cumulative, draw[rows], "right"), len(members) - 1)]
    return item


def _write_shard(
    fs: pafs.FileSystem,
    root: str,
    shard: int,
    numbers: FileNumbers,
    blocks: Iterator[tuple[pa.Table, np.ndarray]],
    tally: _Tally,
) -> None:
    name = f"part-{shard:05d}.parquet"
    number = numbers.next(name)
    rows = requests = 0
    with (
        open_atomic(fs, f"{root}/logs/{name}") as log_stream,
        open_atomic(fs, f"{root}/truth/{name}") as truth_stream,
        _writer(log_stream, _LOG_SCHEMA) as log_writer,
        _writer(truth_stream, _TRUTH_SCHEMA) as truth_writer,
    ):
        for log, truth in blocks:
            local = log.column("request_id").to_numpy()
            numbered = log.set_column(0, _LOG_SCHEMA.field(0), pa.array((shard << 32) + requests + local))
            log_writer.write_table(numbered)
            ids = (number << ROW_BITS) + rows + 1 + np.arange(log.num_rows)
            truth_writer.write_table(pa.table([ids, truth], schema=_TRUTH_SCHEMA))
            tally.add(numbered, truth)
            rows += log.num_rows
            requests += int(local.max(initial=-1)) + 1


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
