"""The passes of `prepare` over files and buckets, and the rows they write."""
