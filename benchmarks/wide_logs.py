"""Logs as web servers write them: CSV of about 480 bytes a row, most of them in columns that no config names.

Made in blocks, so that any size fits into memory. A row has ids of 32 hexadecimal digits (request, session, user,
item), an ISO time, position, click and dwell time, and the page's address, user agent, referrer, country and device.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

ITEMS = 20_000
ROWS_PER_USER = 50
_ROWS_PER_REQUEST = 5
_BLOCK = 200_000
_START = np.datetime64("2024-01-01T00:00:00", "us")
_DAYS = 60
_WORDS = ("market", "river", "stone", "window", "garden", "winter", "engine", "signal", "copper", "harbour", "silver")
_SERVED = [
    (
        "DE",
        "phone",
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/124.0.0.0 Mobile Safari/537.36",
    ),
    ("FR", "desktop", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/123.0.0.0 Safari/537.36"),
    ("US", "tablet", "Mozilla/5.0 (iPad; CPU OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Version/17.4 Safari/604.1"),
]
_CONFIG = """\
name: wide
data:
  logs: {folder}/logs
  time_unit: iso
  columns: {{user: user_id, item: item_id, time: time, request: request_id}}
  items: {{path: {folder}/items.parquet, key: item_id, text: "{{title}}"}}
tasks:
  click: {{label: click, feedback_delay: 30s}}
  dwell: {{kind: regression, label: log(dwell_s + 1), feedback_delay: 10m}}
"""


def write_wide_log(folder: Path, rows: int, files: int) -> int:
    """Writes `logs/part-*.csv`, `items.parquet` and `config.yaml` below an empty folder; returns the bytes of the log.

    Each file holds all users' rows of its share of the days.
    """
    rng = np.random.default_rng(0)
    (folder / "logs").mkdir(parents=True)
    items = _identifiers(rng, ITEMS)
    title = [" ".join(rng.choice(_WORDS, 6)) for _ in range(ITEMS)]
    pq.write_table(pa.table({"item_id": items, "title": title}), folder / "items.parquet")
    (folder / "config.yaml").write_text(_CONFIG.format(folder=folder))
    users = _identifiers(rng, max(rows // ROWS_PER_USER, 10))
    ends = np.linspace(0, rows // _ROWS_PER_REQUEST, files + 1).astype(np.int64) * _ROWS_PER_REQUEST
    for number, (first, end) in enumerate(pairwise(ends)):
        with pa.OSFile(str(folder / f"logs/part-{number:05d}.csv"), "wb") as sink:
            writer: pacsv.CSVWriter | None = None
            for start in range(first, end, _BLOCK):
                count = min(_BLOCK, end - start)
                block = _block(rng, start / rows, (start + count) / rows, count, users, items)
                writer = writer or pacsv.CSVWriter(sink, block.schema)
                writer.write_table(block)
            if writer is not None:
                writer.close()
    return sum(path.stat().st_size for path in (folder / "logs").iterdir())


def _block(rng: np.random.Generator, begin: float, end: float, rows: int, users: pa.Array, items: pa.Array) -> pa.Table:
    """Rows of requests between two shares of the days, in the order of time."""
    requests = rows // _ROWS_PER_REQUEST
    request = np.repeat(np.arange(requests), _ROWS_PER_REQUEST)
    seconds = np.sort(rng.uniform(begin, end, requests)) * _DAYS * 86_400
    user = (len(users) * rng.random(requests) ** 1.5).astype(np.int64)  # some users come more often
    item = pa.array((len(items) * rng.random(rows) ** 2).astype(np.int64))
    click = rng.random(rows) < 0.1
    dwell = np.round(rng.lognormal(3, 1, rows), 2)
    served = pa.array(rng.integers(len(_SERVED), size=requests)[request])
    country, device, agent = (pa.array(values).take(served) for values in zip(*_SERVED, strict=True))
    session, shown = _identifiers(rng, requests).take(pa.array(request)), items.take(item)
    times = np.datetime_as_string(_START + (seconds * 1e6).astype("timedelta64[us]"), unit="ms")
    return pa.table(
        {
            "request_id": _identifiers(rng, requests).take(pa.array(request)),
            "session_id": session,
            "user_id": users.take(pa.array(user[request])),
            "item_id": shown,
            "time": pa.array(times.tolist()).take(pa.array(request)),
            "position": np.tile(np.arange(_ROWS_PER_REQUEST), requests),
            "click": click.astype(np.int8),
            "dwell_s": pa.array(dwell, mask=~click),
            "url": _joined("https://www.example.com/articles/", shown, "?utm_source=newsletter&session=", session),
            "referrer": _joined("https://www.example.com/?session=", session),
            "country": country,
            "device": device,
            "user_agent": agent,
        }
    )


def _identifiers(rng: np.random.Generator, count: int) -> pa.Array:
    digits = np.frombuffer(rng.bytes(16 * count).hex().encode(), dtype="S32")
    return pa.array(digits).cast(pa.string())


def _joined(*parts: str | pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")
