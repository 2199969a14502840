"""Rows dealt to buckets, and distinct rows of several columns."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.data.preparing.dealing import dealt
from mtrec_ray.data.requests.distinct import distinct_rows
from mtrec_ray.data.requests.ids import bucket_of


@given(
    st.lists(st.lists(st.sampled_from(["ann", "bob", "cem", "dan", "日"]), max_size=8), max_size=3), st.integers(1, 7)
)
def test_each_bucket_has_the_rows_of_its_ids_in_their_order(chunks: list[list[str]], buckets: int) -> None:
    users = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())
    table = pa.table({"user": users, "place": np.arange(len(users))})
    rows = list(enumerate(users.to_pylist()))
    expected = [[place for place, user in rows if bucket_of(user, buckets) == bucket] for bucket in range(buckets)]
    assert [part["place"].to_pylist() for part in dealt(table, "user", buckets)] == expected


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2)), max_size=30))
def test_distinct_rows_are_those_of_numpy(rows: list[tuple[int, int]]) -> None:
    matrix = np.array(rows, dtype=np.int64).reshape(-1, 2)
    first, which = distinct_rows(list(matrix.T))
    values, index, inverse = np.unique(matrix, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(matrix[first], values)
    np.testing.assert_array_equal(first, index)
    np.testing.assert_array_equal(which, inverse.ravel())
