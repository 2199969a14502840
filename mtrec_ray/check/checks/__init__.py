"""One file a check; importing this package registers them all."""

from mtrec_ray.check.checks import (
    counted_forward,
    drift,
    duplicates,
    empty_columns,
    feedback_times,
    later_tables,
    missing,
    request_order,
    row_order,
    same_request,
    sessions,
    single_feature,
    times,
    unreadable,
)

ORDER = [
    "counted_forward",
    "later_tables",
    "feedback_times",
    "same_request",
    "single_feature",
    "request_order",
    "row_order",
    "sessions",
    "missing",
    "duplicates",
    "drift",
    "times",
    "empty_columns",
    "unreadable",
]
"""As reports show them: first what makes figures wrong, then what makes them doubtful."""

__all__ = [
    "ORDER",
    "counted_forward",
    "drift",
    "duplicates",
    "empty_columns",
    "feedback_times",
    "later_tables",
    "missing",
    "request_order",
    "row_order",
    "same_request",
    "sessions",
    "single_feature",
    "times",
    "unreadable",
]
