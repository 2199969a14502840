"""Random tokens in place of a share of the tokens: noise after which the text is still mostly there."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows

Array = np.ndarray[Any, np.dtype[Any]]


class TokenNoise:
    """Replaces tokens by others of the vocabulary. Special ones neither go nor come."""

    def __init__(self, share: float, vocab_size: int, special: Collection[int]) -> None:
        self.share = share
        self._special = np.array(sorted(special), dtype=np.int64)
        self._ordinary = np.setdiff1d(np.arange(vocab_size), self._special).astype(np.int32)

    def __call__(self, rows: RequestRows, draws: Draws) -> RequestRows:
        """A token is named by its request's uid or its candidate's row id, and its place in history or candidate."""
        histories = rows.event_tokens.regroup(rows.events)
        row_ids = rows.values("row_id")
        return replace(
            rows,
            event_tokens=replace(rows.event_tokens, values=self._noisy(histories, "history", rows.uids, draws)),
            candidate_tokens=replace(
                rows.candidate_tokens, values=self._noisy(rows.candidate_tokens, "candidate", row_ids, draws)
            ),
        )

    def _noisy(self, texts: Ragged, what: str, uids: Array, draws: Draws) -> Array:
        """The tokens of N texts with uids [N]."""
        text = np.repeat(np.arange(len(uids)), texts.lengths)
        place = np.arange(len(text)) - texts.offsets[text]
        replaced = draws.uniform(f"noise.{what}", uids[text], place) < self.share
        replaced &= ~np.isin(texts.values, self._special)
        other = draws.uniform(f"noise.{what}.token", uids[text], place) * len(self._ordinary)
        return np.where(replaced, self._ordinary[other.astype(np.int64)], texts.values)
