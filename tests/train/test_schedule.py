import pytest

from mtrec_ray.train.schedule import lr_scale


def scales(warmup: float, decay) -> list[float]:
    return [lr_scale(step, 20, warmup, decay) for step in range(20)]


def test_warmup_rises_linearly_to_one() -> None:
    assert scales(0.2, "constant")[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_falls_from_one_to_zero_just_after_the_last_step(decay) -> None:
    values = scales(0.0, decay)
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
    assert lr_scale(20, 20, 0.0, decay) == pytest.approx(0, abs=1e-12)
    assert lr_scale(10, 20, 0.0, decay) == pytest.approx(0.5)


def test_shapes_differ() -> None:
    assert scales(0.1, "cosine") != scales(0.1, "linear") != scales(0.1, "constant")
    assert scales(0.1, "cosine") != scales(0.3, "cosine")


def test_one_step() -> None:
    assert lr_scale(0, 1, 0.0, "cosine") == 1.0
    assert 0 < lr_scale(0, 1, 1.0, "cosine") <= 1
