"""Canonical events -> candidates with split, labels and history end, in windows."""
