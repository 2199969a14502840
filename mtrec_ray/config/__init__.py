"""The typed run config: one frozen model per part, unknown keys refused, one home per default.

A run is one YAML file (`mtrec_ray.config_file.load`). Units are in names or docstrings: durations are seconds
after parsing and may be written as `30s`, `10m`, `1h`, `7d`. This package imports neither ray nor torch.
"""

from mtrec_ray.config.data import (
    SHORTEST_VECTOR,
    Category,
    CategoryField,
    Columns,
    Data,
    History,
    Number,
    NumberField,
    Split,
    Table,
    Vector,
    VectorField,
)
from mtrec_ray.config.features import Augment, Features, ItemText
from mtrec_ray.config.jobs import Cluster, Evaluate
from mtrec_ray.config.model import ADAPTER_FIELDS, RESOLVED, Adapter, Backbone, Matching, Position, Towers
from mtrec_ray.config.multitask import Adaptive, Balance, Stage, Strategy
from mtrec_ray.config.part import Dropout, Duration, Part, Share, is_time_zone, parse_duration
from mtrec_ray.config.regularization import Adversarial, RDrop, Regularization
from mtrec_ray.config.run import Run
from mtrec_ray.config.search import Compare, JointMethod, Tune
from mtrec_ray.config.sources import Feedback, PartitionRange, TimeUnit, UserMap
from mtrec_ray.config.task import Task
from mtrec_ray.config.training import Engine, GroupRates, Guard, LearningRate, Pretrain, Train, WeightDecay

__all__ = [
    "ADAPTER_FIELDS",
    "RESOLVED",
    "SHORTEST_VECTOR",
    "Adapter",
    "Adaptive",
    "Adversarial",
    "Augment",
    "Backbone",
    "Balance",
    "Category",
    "CategoryField",
    "Cluster",
    "Columns",
    "Compare",
    "Data",
    "Dropout",
    "Duration",
    "Engine",
    "Evaluate",
    "Features",
    "Feedback",
    "GroupRates",
    "Guard",
    "History",
    "ItemText",
    "JointMethod",
    "LearningRate",
    "Matching",
    "Number",
    "NumberField",
    "Part",
    "PartitionRange",
    "Position",
    "Pretrain",
    "RDrop",
    "Regularization",
    "Run",
    "Share",
    "Split",
    "Stage",
    "Strategy",
    "Table",
    "Task",
    "TimeUnit",
    "Towers",
    "Train",
    "Tune",
    "UserMap",
    "Vector",
    "VectorField",
    "WeightDecay",
    "is_time_zone",
    "parse_duration",
]
