from mtrec_ray.launch.train import side_features_only
from tests.batches import make_run


def test_the_baseline_of_side_features_trains_all_it_has_from_nothing_to_the_end() -> None:
    run = make_run("backbone=nano", "strategy.stages=[{until: 0.5, train: [adapters], layers: 1}, {until: 1}]")
    baseline = side_features_only(run)
    assert baseline.backbone.name == "none"
    assert baseline.strategy.stages == []
    assert baseline.train == run.train
    assert type(run).model_validate(baseline.model_dump()) == baseline, "what is told of it can be loaded again"
