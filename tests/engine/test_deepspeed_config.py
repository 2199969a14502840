"""The one function that turns our config into DeepSpeed's, tested as data: no DeepSpeed needed."""

from mtrec_ray.engine.deepspeed import deepspeed_config, loading_config
from tests.batches import make_run


def config(*overrides: str) -> dict:
    return deepspeed_config(make_run("engine.name=deepspeed", *overrides))


def test_defaults() -> None:
    assert config() == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # the engine clips, by a norm that counts the tables too
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }


def test_stage_and_offload() -> None:
    assert config("engine.zero_stage=2", "engine.offload=cpu")["zero_optimization"] == {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    }
    offloaded = config("engine.zero_stage=3", "engine.offload=cpu")["zero_optimization"]
    assert offloaded["offload_param"] == {"device": "cpu", "pin_memory": False}


def test_precision_reaches_deepspeed_only_while_frozen_weights_are_loaded() -> None:
    assert "bf16" not in config("engine.precision=bf16")
    for overrides, bf16 in (
        (("engine.precision=bf16",), True),
        (("engine.precision=fp32",), False),
        (("engine.precision=bf16", "adapter.kind=full"), False),
    ):
        assert loading_config(make_run(*overrides))["bf16"] == {"enabled": bf16}
