"""All changes to train requests in their order."""

from dataclasses import dataclass

import pyarrow as pa

from mtrec_ray.config import Augment
from mtrec_ray.data.streaming.augment.domains import sample_domains, shares_by_domain
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.history import change_history
from mtrec_ray.data.streaming.augment.item_text import ItemTexts
from mtrec_ray.data.streaming.augment.negatives import sample_negatives
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.data.streaming.augment.tokens import TokenNoise


@dataclass(frozen=True)
class Augmenter:
    """Request rows -> changed request rows of the same schema, for `data.streaming.stream.StepStream`.

    Fewer requests, events, candidates or tokens may come out, never more. Of a candidate, its history and its tokens
    change; ids, features, labels and times do not.
    """

    settings: Augment
    seed: int
    texts: ItemTexts | None = None
    noise: TokenNoise | None = None
    ordered: bool = True
    """Whether something reads the events in their order: a language model"""
    domains: tuple[str, ...] = ()
    """Of the manifest"""

    def __call__(self, table: pa.Table, step: int) -> pa.Table:
        """`step`: number of the optimizer step, counted over epochs."""
        if not table.num_rows:
            return table
        draws, before = Draws(self.seed, step), RequestRows.of(table)
        rows, wanted = before, self.settings
        if wanted.domains:
            rows = sample_domains(rows, shares_by_domain(wanted.domains, self.domains), draws)
        if wanted.negatives < 1:
            rows = sample_negatives(rows, wanted.negatives, draws)
        thins = bool(wanted.domains) or wanted.negatives < 1
        if thins or wanted.history_crop or wanted.history_mask or wanted.history_reorder:
            rows = change_history(rows, wanted, draws, self.ordered)
        if self.texts is not None:
            rows = self.texts(rows, draws)
        if self.noise is not None:
            rows = self.noise(rows, draws)
        _check_no_more_tokens(before, rows)
        return rows.table()


def _check_no_more_tokens(before: RequestRows, after: RequestRows) -> None:
    """The micro-steps were planned by the tokens of each request as it was prepared."""
    planned = dict(zip(before.uids.tolist(), before.tokens.tolist(), strict=True))
    for uid, tokens in zip(after.uids.tolist(), after.tokens.tolist(), strict=True):
        assert tokens <= planned[uid], f"request {uid} has {tokens} tokens after augmentation, {planned[uid]} before"
