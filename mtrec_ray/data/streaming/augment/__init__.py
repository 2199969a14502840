"""Changes to train requests between the prepared rows and the batch, each a switch of `config.Augment`.

All of them are pure functions of (seed, step, uid): a request is changed in the same way in whatever micro-step, on
whatever rank, and after a resume; in the next epoch, whose steps have other numbers, it is changed otherwise. None adds
a token, so the order's plan of micro-steps, which knows of no change, stays an upper bound.
"""
