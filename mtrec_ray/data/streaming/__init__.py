"""From prepared shards to batches, in an order that is a pure function of data, seed and step."""
