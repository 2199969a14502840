"""The numbers and categories of a candidate, each known strictly before its time."""
