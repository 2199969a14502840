from mtrec_ray.train.stopping import Stopping


def follow(patience: int | None, *metrics: float) -> Stopping:
    state = Stopping(patience)
    for step, metric in enumerate(metrics, 1):
        state = state.after(metric, step)
    return state


def test_keeps_the_best() -> None:
    state = follow(2, 0.5, 0.7, 0.6)
    assert (state.best, state.best_step, state.stop) == (0.7, 2, False)


def test_stops_when_patience_ends() -> None:
    assert follow(2, 0.7, 0.6, 0.7).stop  # equal is not better
    assert not follow(2, 0.7, 0.6, 0.8, 0.1).stop


def test_without_patience_it_never_stops() -> None:
    assert not follow(None, 0.9, *([0.1] * 50)).stop


def test_nan_is_never_best() -> None:
    state = follow(1, float("nan"))
    assert state.best is None
    assert state.stop
