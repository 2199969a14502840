"""Kinds of tasks: what a label is, what a tower gives for it, which loss it takes and what its score means."""
