"""What the labels of each built-in task kind are: all that configs, logs and baselines need to know of it."""

from typing import Literal

Labels = Literal["binary", "class", "number", "none"]
"""0 or 1; 0 .. classes-1; any number; or no label at all: an objective over what is shown."""

BUILT_IN: dict[str, Labels] = {
    "binary": "binary",
    "conversion": "binary",
    "delayed": "binary",
    "interest_match": "binary",
    "multiclass": "class",
    "ordinal": "class",
    "query_match": "binary",
    "ranking": "binary",
    "regression": "number",
    "retrieval": "binary",
    "watch_time": "number",
    "diversity": "none",
    "novelty": "none",
}

DELAYED = "delayed"
"""The kind that learns from rows on which feedback may still come."""

MATCHING = ("interest_match", "retrieval")
"""The kinds that match users against all items, which `prepare` lists for them in a catalogue."""

FITTED_PARAMS = {"watch_time": ("duration", "cap", "groups")}
"""Parameters of a kind that change what `prepare` fits for it; all others may change without preparing again."""
