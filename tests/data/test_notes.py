"""What `prepare` says in the end can be read: counts have their thousands apart."""

import re

from mtrec_ray.data.manifest import CollisionEntry, ShardEntry
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.notes import summary
from tests.batches import make_manifest, make_run

COUNTS = {
    "candidates": 1_739_526,
    "users": 51_400,
    "requests": 204_100,
    "rows_quarantined": 1_200,
    "users_with_few_candidates": 1_001,
    "cut_texts": 5_001,
    "cut_events": 7_002,
    "cut_candidates": 8_003,
    "repeats": 9_004,
    "feedback": 1_005_000,
    "feedback_unmatched": 2_006,
    "feedback_repeated": 3_007,
    "long_users": 4_008,
    "rows_of_long_users_left_out": 5_009,
    "rows_unmapped": 6_010,
    "valid_users_without_earlier_event": 7_011,
    "valid_users": 8_012,
    "test_users_without_earlier_event": 0,
    "test_users": 9_013,
}
COLLISIONS = CollisionEntry(
    of="user", ids=12_345, rows=100_000, hashes=2, some=0.4, all=0.0, expected_some=0.4, expected_all=0.0
)


def shard(candidates: int) -> ShardEntry:
    fields = dict.fromkeys(ShardEntry.model_fields, 0)
    return ShardEntry.model_construct(**fields | {"path": "part.parquet", "candidates": candidates})


def test_counts_of_prepared_data_have_their_thousands_apart() -> None:
    manifest = make_manifest().model_copy(
        update={
            "counts": COUNTS,
            "id_collisions": [COLLISIONS],
            "boundaries": {},
            "shards": {
                "train": [shard(1_200_000), shard(300_000)],
                "valid": [shard(119_526)],
                "test": [shard(120_000)],
            },
        }
    )
    run = make_run("data.max_user_events=20000")
    lines = summary(Prepared("prepared/ab12", manifest), run)
    assert lines[0] == (
        "Prepared 1,739,526 candidates (1,500,000 train, 119,526 valid, 120,000 test) of 51,400 users in 204,100 "
        "requests: prepared/ab12"
    )
    assert "12,345 users in 100,000 rows" in "\n".join(lines)
    told = "\n".join(lines).replace("data.max_user_events 20000", "")
    assert not re.search(r"\d{4}", told)
    missing = {name for name, count in COUNTS.items() if count and f"{count:,}" not in told}
    assert missing == {"cut_texts", "valid_users_without_earlier_event", "test_users"}, "the second is told as a share"
