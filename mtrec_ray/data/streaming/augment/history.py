"""Crop, mask and reorder of histories, after the operators of CL4SRec (Xie et al. 2020, arXiv 2010.14395).

The paper makes two views of a sequence with them and contrasts the two; here the one changed sequence is trained on in
place of the original, as other augmentations of labelled data are. Where we differ from its operators:

- *item crop* keeps a part of a sequence in a row, of a fixed share of its length. Here a share of the requests is
  cropped, and the length is drawn from 1 to all events: so whole histories are still seen, as they are when scored.
- *item mask* puts a [mask] item in place of items drawn at random. Here they are left out, with all that is known of
  them: decoders have no mask token, and their padding token stands nowhere in what they were trained on.
- *item reorder* shuffles a part of a fixed share of the length, as here.

No candidate is shown anything that it did not see before. A candidate sees the longest beginning of the changed history
whose events it saw all: with a running maximum over the old places of the events, in their new order, that is the
part where the maximum is below the candidate's old end. So of a shuffled part a candidate in the middle of it sees what
comes before the first event that it must not see.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Augment
from mtrec_ray.data.requests.ragged import offsets_of
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows

Array = np.ndarray[Any, np.dtype[Any]]

SHOWN = "shown"
"""Column over candidates that is added: how many events each saw as it was prepared, which tells who was shown with
whom also where ends have become the same."""


def change_history(rows: RequestRows, settings: Augment, draws: Draws, reorder: bool) -> RequestRows:
    """Cropped, then masked, then (if `reorder`) reordered; events that no candidate sees any more are left out."""
    kept = np.ones(len(rows.request_of_event), dtype=bool)
    if settings.history_crop:
        kept &= cropped(rows, settings.history_crop, draws)
    if settings.history_mask:
        kept &= draws.uniform("mask", rows.uids[rows.request_of_event], rows.event_places) >= settings.history_mask
    chosen = np.flatnonzero(kept)
    if reorder and settings.history_reorder:
        counts = np.bincount(rows.request_of_event[chosen], minlength=len(rows.events))
        chosen = chosen[shuffled(counts, settings.history_reorder, rows.uids, draws)]
    seen = visible(rows, chosen)
    return _without_unseen(rows.with_column(SHOWN, pa.array(rows.seen)).with_events(chosen, seen))


def cropped(rows: RequestRows, share: float, draws: Draws) -> Array:
    """bool [E]: which events stay."""
    uids, counts = rows.uids, rows.events
    length = 1 + _below(draws.uniform("crop.length", uids), counts)
    first = _below(draws.uniform("crop.first", uids), counts - length + 1)
    whole = draws.uniform("crop", uids) >= share
    request, place = rows.request_of_event, rows.event_places
    inside = (first[request] <= place) & (place < (first + length)[request])
    return whole[request] | inside


def shuffled(counts: Array, share: float, uids: Array, draws: Draws) -> Array:
    """int64 [E]: the new order of histories of these lengths, each with a part of it shuffled.

    A part of floor(share * length) events in a row, of which two are needed to be shuffled.
    """
    length = (share * counts).astype(np.int64)
    first = _below(draws.uniform("reorder.first", uids), counts - length + 1)
    request = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(request)) - offsets_of(counts)[request]
    inside = (first[request] <= place) & (place < (first + length)[request])
    among = np.where(inside, draws.uniform("reorder", uids[request], place), 0.0)
    return np.lexsort((among, np.where(inside, first[request], place), request))


def visible(rows: RequestRows, chosen: Array) -> Array:
    """int64 [C]: how many of the chosen events (old numbers in their new order) each candidate may see."""
    newest = np.maximum.accumulate(chosen)  # over all requests at once: later ones have larger numbers
    counts = np.bincount(rows.request_of_event[chosen], minlength=len(rows.events))
    request = rows.request_of_candidate
    end = offsets_of(rows.events)[request] + rows.seen
    return np.searchsorted(newest, end, side="left") - offsets_of(counts)[request]


def _without_unseen(rows: RequestRows) -> RequestRows:
    last = np.zeros(len(rows.events), dtype=np.int64)
    np.maximum.at(last, rows.request_of_candidate, rows.seen)
    chosen = np.flatnonzero(rows.event_places < last[rows.request_of_event])
    return rows if len(chosen) == len(rows.request_of_event) else rows.with_events(chosen, rows.seen)


def _below(uniform: Array, bound: Array) -> Array:
    """int64 in [0, bound) from numbers in [0, 1); 0 where the bound is 0."""
    return (uniform * bound).astype(np.int64)
