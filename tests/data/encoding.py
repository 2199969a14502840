"""All that comes after the canonical table, in this process: fitted, tokenised and encoded."""

from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import read_tables
from mtrec_ray.data.features.item_past import answered
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.tokenizer import make_tokenizer
from mtrec_ray.data.preparing.encode import Encoded, encode
from mtrec_ray.data.requests.splits import TimeSplit
from tests.data.by_hand import ALL_TRAIN, bucket


def encoded(
    run: Run, rows: list[dict[str, Any]], boundaries: TimeSplit | None = ALL_TRAIN, shared_end: bool = False
) -> tuple[Encoded, Any, Fitted]:
    """All users in one bucket; with the tokenizer and what was fitted."""
    built, tables = bucket(run, rows, boundaries), read_tables(run)
    collected = collect(built, run, tables, 10**6)
    fitted = fit(Gathered.of([collected]), run, tables)
    tokenizer = make_tokenizer(run, tables, collected.event_items, collected.words, collected.queries)
    encoder = None if tokenizer is None else TextEncoder(tokenizer)
    return encode(built, run, tables, fitted, encoder, shared_end, answered(built, run)), tokenizer, fitted
