"""A whole run."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from mtrec_ray.config.data import Data, History, Split
from mtrec_ray.config.features import Augment, Features
from mtrec_ray.config.jobs import Cluster, Evaluate
from mtrec_ray.config.model import Adapter, Backbone, Matching, Position, Towers
from mtrec_ray.config.multitask import Balance, Strategy
from mtrec_ray.config.part import Part
from mtrec_ray.config.regularization import Regularization
from mtrec_ray.config.search import Compare, Tune
from mtrec_ray.config.task import Task
from mtrec_ray.config.training import Engine, Pretrain, Train


def _backbone(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Run(Part):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of the run, and of its folder below `cluster.storage`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is drawn: the first weights, the order of requests, dropout, resamplings."""
    plugins: list[str] = []
    """Modules of your own that are imported first, and register kinds, towers, balance methods or metrics."""
    data: Data
    tasks: dict[str, Task] = Field(min_length=1)
    history: History = History()
    split: Split = Split()
    features: Features = Features()
    augment: Augment = Augment()
    backbone: Annotated[Backbone, BeforeValidator(_backbone)] = Backbone()
    adapter: Adapter = Adapter()
    towers: Towers = Towers()
    matching: Matching = Matching()
    position: Position = Position()
    balance: Balance = Balance()
    strategy: Strategy = Strategy()
    regularization: Regularization = Regularization()
    train: Train = Train()
    engine: Engine = Engine()
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    tune: Tune = Tune()
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _adapter_fits_engine(self) -> Self:
        engine = self.engine
        if self.adapter.kind == "adalora" and engine.name == "deepspeed" and engine.zero_stage > 0:
            raise ValueError(
                f"engine.zero_stage is {engine.zero_stage}, where gradients and weights lie in parts on the workers, "
                "but adapter.kind adalora ranks whole ones; set engine.zero_stage: 0 or engine.name: plain, or take "
                "adapter.kind: lora"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit_backbone(self) -> Self:
        for i, stage in enumerate(self.strategy.stages):
            if stage.layers is not None and self.backbone.name == "none":
                raise ValueError(
                    f"strategy.stages[{i}].layers is {stage.layers}, but backbone is 'none', which has no layers; "
                    "remove layers, or name a backbone"
                )
        return self

    @model_validator(mode="after")
    def _layout_fits_tasks(self) -> Self:
        for name, task in self.tasks.items():
            if self.data.layout == "behaviours" and task.label is not None:
                raise ValueError(f"tasks.{name}: layout 'behaviours' needs `event`, not `label`")
            if self.data.layout == "impressions" and task.event is not None and not self.data.feedback:
                raise ValueError(
                    f"tasks.{name}: layout 'impressions' needs `label`, not `event`; or say in "
                    "data.feedback where the feedback of that type lies"
                )
            if self.data.layout == "impressions" and task.event is not None:
                for part in ("observed", "feedback_time", "feedback_delay"):
                    if getattr(task, part) is not None:
                        raise ValueError(f"tasks.{name}: `{part}` belongs to `label`; feedback has its own time")
        return self
