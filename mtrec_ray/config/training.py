"""The optimisation: steps, rates, metrics and guards, engine, pretraining."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    model_validator,
)

from mtrec_ray.config.part import Part, Share


class GroupRates(Part):
    """One number per parameter group."""

    adapters: float
    towers: float
    tables: float


class LearningRate(GroupRates):
    """Per step, for AdamW."""

    adapters: float = 1e-3
    towers: float = 1e-3
    tables: float = 2e-3


class WeightDecay(GroupRates):
    """Decoupled from the gradient, as AdamW's. Of tables of ids and categories only rows that a step touches decay."""

    adapters: float = 0.0
    towers: float = 0.01
    tables: float = 0.0


def _metrics(value: Any) -> Any:
    """`task/metric`, several of them, or several with weights. The words are checked where the tasks are known."""
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        twice = next((name for name in value if value.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is there twice; for weights write a mapping, as {{{twice}: 2}}")
    elif isinstance(value, dict) and value:
        weights = [w for w in value.values() if isinstance(w, int | float) and not isinstance(w, bool)]
        if len(weights) < len(value) or not all(0 < w < math.inf for w in weights):
            raise ValueError(f"{value!r} has a weight that is no number above 0; leave out what should not count")
    elif not isinstance(value, str):
        raise ValueError(f"{value!r} is neither task/metric, nor a list of these, nor a mapping of these to weights")
    return value


class Guard(Part):
    """How much worse a validation metric may be in the best checkpoint, in the metric's own unit.

    Worse is lower for `auc` and the like, higher for `rmse`, `mae`, `logloss`. With both keys both hold.
    """

    loses_at_most: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Against the best value that this run has had until then."""
    no_worse_than: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A figure to hold, as that of the task learned alone."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.loses_at_most is None and self.no_worse_than is None:
            raise ValueError("a guard needs `loses_at_most`, as 0.01, or `no_worse_than`, as 0.85")
        return self


class Train(Part):
    """The optimisation. A step is one optimizer step; its batch is counted over all workers."""

    start_from: str | None = None
    """Folder or URL of a finished run, as `runs/monday`, whose weights this one begins with: rows of tables by their
    ids and values, towers by their tasks, columns by their features. What that run has not begins as ever, and so does
    the optimizer. Both runs need the same backbone, adapter and towers; `nano` is that run's, with its tokenizer, from
    the prepared folder where it lies. The baseline `side_features` begins without. See `mtrec_ray.train.start`."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: PositiveInt | None = None
    batch_requests: PositiveInt = 32
    """Requests per optimizer step, over all workers."""
    micro_tokens: PositiveInt = 8192
    """Most tokens of one forward pass on one worker, those of all views that `regularization` adds included; a longer
    single request still goes alone."""
    learning_rate: LearningRate = LearningRate()
    lora_plus: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: the B matrices of LoRA learn at this multiple of `learning_rate.adapters`, the A matrices at that itself.
    Its authors take 16."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Trained weights of the backbone learn at `learning_rate.adapters` times this to the power of the number of layers
    above them: 1 for the top layer, least for the embeddings."""
    weight_decay: WeightDecay = WeightDecay()
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of `engine.optimizer: sgd`; the others have their own averages."""
    warmup: Share = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    evaluations_per_epoch: PositiveInt = 1
    metric: Annotated[str | list[str] | dict[str, float], BeforeValidator(_metrics)] = "auto"
    """Validation metric that chooses the best checkpoint, as `like/auc`; `auto` = mean AUC of the tasks whose main
    metric it is.

    Or several: a list stands for their mean, `{like/auc: 1, rating/rmse: 0.5}` for the sum with these weights; a metric
    of which lower is better is subtracted.
    """
    guards: dict[str, Guard] = {}
    """What the best checkpoint must hold, as `{rating/rmse: {loses_at_most: 0.01}, like/auc: {no_worse_than: 0.85}}`.
    Of evaluations that hold all guards the one with the best metric is kept, else the one that misses by least."""
    patience: PositiveInt | None = 3
    """Stop after this many evaluations without a better one."""
    log_every: PositiveInt = 10


class Engine(Part):
    """What carries out a step."""

    name: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: Literal["none", "cpu"] = "none"
    """Where ZeRO keeps optimizer state (stage 1-3) and parameters (stage 3)."""
    activation_checkpointing: bool = False
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    """`adafactor` needs little memory beside the weights; its learning rates are shares of the weights' own size, 1e-2
    rather than 1e-3."""

    @model_validator(mode="after")
    def _whole_matrices(self) -> Self:
        if self.optimizer == "adafactor" and self.name == "deepspeed" and self.zero_stage > 0:
            raise ValueError(
                f"engine.zero_stage is {self.zero_stage}, where the optimizer gets flat parts of the weights, but "
                "adafactor needs whole matrices; set engine.zero_stage: 0 or engine.name: plain, or take "
                "engine.optimizer: adamw"
            )
        return self


class Pretrain(Part):
    """Self-supervised training of the backbone on train-period text: next token, or masked for encoders."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_tokens: PositiveInt = 8192
    sequence_tokens: PositiveInt = 256
    max_steps: PositiveInt | None = None
