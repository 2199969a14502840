"""The typed run config: one frozen model per part, unknown keys refused, one home per default.

A run is one YAML file (`mtrec_ray.config_file.load`). Units are in names or docstrings: durations are seconds
after parsing and may be written as `30s`, `10m`, `1h`, `7d`. This module imports neither ray nor torch.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, field_validator, model_validator

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: Any) -> Any:
    """`'90s'`, `'10m'`, `'1h'`, `'7d'`, `'2w'` or a number of seconds -> seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", value)
        if match is None:
            raise ValueError(f"'{value}' is not a duration; write e.g. 30s, 10m, 1h, 7d, or seconds")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of every config part: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class Category(Part):
    """A column of categories; with a `separator` (as `|`) one cell holds several."""

    column: str
    separator: str | None = None
    min_count: PositiveInt = 2
    """Values rarer than this in the train period share the unknown row."""


class Number(Part):
    """A column of numbers; with a `pattern` the first group of the regular expression found in a text column."""

    column: str
    pattern: str | None = None
    name: str | None = None
    """Name of the feature; the column's name by default."""

    @property
    def feature(self) -> str:
        return self.name or self.column


CategoryField = Annotated[Category, BeforeValidator(_column)]
NumberField = Annotated[Number, BeforeValidator(_column)]


class Table(Part):
    """A table of items or users, one row per key."""

    path: str
    key: str
    text: str | None = None
    """Template over the table's columns, as `"{title} {genres}"`; empty cells give empty text."""
    categories: list[CategoryField] = []
    numbers: list[NumberField] = []


class Columns(Part):
    """Which column of the log is what."""

    user: str
    item: str
    time: str
    request: str | None = None
    """Rows with the same value were shown together; without it rows of one user at one time were."""
    event: str | None = None
    """Event type; needed by layout `behaviours`."""


class Data(Part):
    """The logs and the tables that belong to them."""

    logs: str | list[str]
    """File, folder, glob or list of them: local, or any URL that pyarrow's filesystems open (s3://, gs://, hdfs://)."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    layout: Literal["impressions", "behaviours"] = "impressions"
    columns: Columns
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    candidate_event: str | None = None
    """`behaviours`: the event type that makes a candidate, as VIEW (its first one per user and item)."""
    items: Table | None = None
    users: Table | None = None
    categories: list[CategoryField] = []
    """Columns of the log itself that are known when the item is shown."""
    numbers: list[NumberField] = []
    max_bad_share: Share = 0.01
    """`prepare` stops when a larger share of the rows had to be quarantined."""
    prepared_dir: str = "prepared"
    """Cache of prepared data: a folder or URL; one subfolder per fingerprint of inputs and settings."""
    buckets: PositiveInt = 8
    """Users are hashed into this many buckets; each becomes one shard per split and one unit of parallel work."""

    @model_validator(mode="after")
    def _behaviours_need_types(self) -> Self:
        if self.layout == "behaviours" and not (self.columns.event and self.candidate_event):
            raise ValueError("layout 'behaviours' needs data.columns.event and data.candidate_event")
        return self


class Task(Part):
    """One label with a loss and metrics.

    `impressions`: `label` is an expression over the log's columns (`click`, `rating >= 4`); it is unobserved where
    the expression is NaN or `observed` is false. `behaviours`: `event` names the event type whose occurrence on
    the candidate's user and item is the label; with `value` (regression) the label is that column's value.
    """

    kind: str = "binary"
    label: str | None = None
    event: str | None = None
    value: str | None = None
    observed: str | None = None
    classes: int | None = Field(default=None, ge=2)
    """Number of classes of kind `multiclass`; labels are 0 .. classes-1."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    feedback_time: str | None = None
    """Column with the time at which the label became known; an absent time keeps it out of the history."""
    feedback_delay: Duration | None = None
    """The label becomes known this long after the row's time; without this and `feedback_time` it enters no history."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.label is None) == (self.event is None):
            raise ValueError("a task needs exactly one of `label` (impressions) and `event` (behaviours)")
        if self.feedback_time is not None and self.feedback_delay is not None:
            raise ValueError("feedback_time and feedback_delay exclude each other")
        if (self.kind == "multiclass") != (self.classes is not None):
            raise ValueError("`classes` belongs to kind 'multiclass', and is needed there")
        return self


class History(Part):
    """What a candidate may know of its user's past."""

    max_events: Annotated[int, Field(ge=0)] = 64
    """Window in events, 0 or at least 2; each candidate sees at least min(all, half of it).

    With 0 the model reads no history, neither texts nor events; `features.aggregates` still count what happened before.
    """
    event_tokens: PositiveInt = 16
    """Longest text of one history event, in tokens; longer texts are cut and counted."""
    candidate_tokens: PositiveInt = 16
    lag: Duration = 0.0
    """Withholds every event younger than this from the candidate, as a log pipeline does that is this late."""
    layout: Literal["auto", "staircase", "shared_end"] = "auto"
    """`staircase`: one history, candidates with own ends (decoders). `shared_end`: one end per request (encoders)."""
    max_candidates: PositiveInt = 128
    """Requests with more candidates are cut into several with the same history."""
    exposures: bool = True
    """Whether a shown item without (yet known) feedback is an event of the history."""

    @field_validator("max_events")
    @classmethod
    def _two_halves(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "1 event cannot be halved, and windows overlap by half; give 0 for no history, or 2 or more"
            )
        return value


class Split(Part):
    """Train, validation and test candidates.

    `time`: ordered by (time, user, item), the last `test` share is test, the `valid` share before it validation;
    or explicit boundaries in the log's time unit. `user`: the same per user, at least one each. `column`: a column
    that says train, valid or test.
    """

    by: Literal["time", "user", "column"] = "time"
    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    column: str | None = None
    train_until: str | float | None = None
    """First time that is no longer train: a number in the log's unit or an ISO date."""
    valid_until: str | float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column belongs to split.by: column, and is needed there")
        if (self.train_until is None) != (self.valid_until is None):
            raise ValueError("give both split.train_until and split.valid_until, or neither")
        if self.train_until is not None and self.by != "time":
            raise ValueError("split.train_until belongs to split.by: time")
        if self.valid + self.test >= 1:
            raise ValueError("split.valid + split.test must leave rows for training")
        return self


class Features(Part):
    """Side features of each candidate, beside the language model's reading of the text."""

    user_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the table of user ids; 0 = no such table. Off: beside the aggregates it did not pay (docs/LOG.md)."""
    item_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the table of item ids, likewise."""
    category_dim: Annotated[int, Field(ge=0)] = 8
    min_count: PositiveInt = 2
    """Ids with fewer train rows share the unknown row."""
    id_dropout: Dropout = 0.1
    """Share of ids replaced by the unknown row in training, so that it is trained."""
    aggregates: list[str] | Literal["auto"] = "auto"
    """As-of aggregates, e.g. `user`, `item`, `user * genres`, `user ~ genres`; `[]` = none."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Statistics of items in train rows leave out the fold the user belongs to."""
    time: bool = True
    """Hour, weekday and gaps to the user's earlier events."""
    number_dim: Annotated[int, Field(ge=0)] = 0
    """Width of a piecewise-linear encoding of each number, beside the standardised number; 0 = none."""
    history_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the attention from the candidate's item to the items of its history; 0 = no such attention."""
    hidden: list[PositiveInt] = [128]
    """Layers of the network that reads the side features."""
    dropout: Dropout = 0.1


class Backbone(Part):
    """The shared language model.

    `name`: `none` (side features only), `nano` (the built-in decoder, sized below), a Hugging Face name or a path.
    """

    name: str = "nano"
    pooling: Literal["auto", "last", "mean"] = "auto"
    packing: Literal["auto", "require", "off"] = "auto"
    """`auto` falls back to one sequence per candidate, with the reason, if the start-up probe finds a difference."""
    pretrained: bool = True
    """`nano`: start from the weights of `mtrec pretrain`; false = random weights (an ablation)."""
    vocab_size: PositiveInt = 2048
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4


class Adapter(Part):
    """Which weights of the backbone are trained."""

    kind: Literal["lora", "full", "frozen"] = "lora"
    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Dropout = 0.0
    targets: str | list[str] = "all-linear"
    """Module names, or one regular expression over them, as PEFT's target_modules."""
    top_layers: PositiveInt | None = None
    """Only the last n layers get adapters."""


class Towers(Part):
    """From z, the candidate's representation, to one logit vector per task."""

    z_dim: PositiveInt = 128
    hidden: list[PositiveInt] = [64]
    dropout: Dropout = 0.1


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
    """Decoupled from the gradient, as AdamW's."""

    adapters: float = 0.0
    towers: float = 0.01
    tables: float = 0.0


class Train(Part):
    """The optimisation. A step is one optimizer step; its batch is counted over all workers."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: PositiveInt | None = None
    batch_requests: PositiveInt = 32
    """Requests per optimizer step, over all workers."""
    micro_tokens: PositiveInt = 8192
    """Most tokens of one forward pass on one worker; a longer single request still goes alone."""
    learning_rate: LearningRate = LearningRate()
    weight_decay: WeightDecay = WeightDecay()
    warmup: Share = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    evaluations_per_epoch: PositiveInt = 1
    metric: str = "auto"
    """Validation metric that chooses the best checkpoint, as `like/auc`; `auto` = mean AUC of the binary tasks."""
    patience: PositiveInt | None = 3
    """Stop after this many evaluations without a better metric."""
    log_every: PositiveInt = 10


class Engine(Part):
    """What carries out a step."""

    name: Literal["deepspeed", "plain"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: Literal["none", "cpu"] = "none"
    """Where ZeRO keeps optimizer state (stage 1-3) and parameters (stage 3)."""
    activation_checkpointing: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"


class Pretrain(Part):
    """Self-supervised training of the backbone on train-period text: next token, or masked for encoders."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_tokens: PositiveInt = 8192
    sequence_tokens: PositiveInt = 256
    max_steps: PositiveInt | None = None


class Evaluate(Part):
    """What is measured after training."""

    bootstrap: Annotated[int, Field(ge=0)] = 200
    """Resamplings of users for the intervals; 0 = none."""
    baselines: list[Literal["constant", "running_rates", "gbdt", "side_features"]] = [
        "constant",
        "running_rates",
        "gbdt",
    ]
    batch_requests: PositiveInt = 64


class Cluster(Part):
    """Workers of the training job."""

    workers: PositiveInt = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    max_failures: Annotated[int, Field(ge=0)] = 1
    storage: str = "runs"
    """Folder or URL under which each run has its own folder; on several nodes it must be shared."""


class Tune(Part):
    """A search over values of this config: `mtrec tune`."""

    space: dict[str, Any] = {}
    """Dotted path -> distribution, as `train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}`; see `search.space`."""
    trials: PositiveInt = 24
    """The first one has the values of the config itself."""
    searcher: str = "auto"
    """`random`, `grid`, `tpe`, `nsga2`, or one of Ray's by its name; `auto` = `tpe`."""
    objectives: list[str] = Field(default=["auto"], min_length=1)
    """Validation metrics, as `like/auc`; `auto` = `train.metric`. Several give a Pareto front; the first one steers."""
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = "asha"
    """What stops (or, `pbt`, replaces) poor trials before their end."""
    grace: PositiveInt = 1
    """Evaluations before a trial may be stopped; `pbt`: evaluations between two exchanges."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """`asha`, `hyperband`: of how many trials one goes on at a rung."""
    mode: Literal["auto", "distributed", "stacked"] = "auto"
    """`distributed`: each trial is a training job of `cluster.workers`. `stacked`: many trials on one backbone copy."""
    stack: PositiveInt = 8
    """Most trials on one backbone copy."""
    max_concurrent: PositiveInt | None = None
    """Most trials at a time; by default as many as the cluster has room for."""
    time_limit: Duration | None = None
    """No trial starts after this, and running ones end with their next evaluation."""
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None
    """The same for the sum over all trials of GPU hours (CPU hours where `cluster.gpus_per_worker` is 0)."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often a trial may start again from its last checkpoint."""
    select: Literal["best", "knee", "weights", "guard"] = "best"
    """Which trial becomes `best.yaml`: best first objective; knee of the front; best weighted sum; or best first
    objective among those that lose no other objective by more than `guard`."""
    select_weights: dict[str, float] = {}
    guard: Annotated[float, Field(ge=0)] = 0.01
    """Largest loss in another objective, as a share of that objective's best value."""
    retrain: bool = False
    """Train the chosen config as a run of its own afterwards, with test figures and report."""


def _backbone(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Run(Part):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: Annotated[int, Field(ge=0)] = 0
    plugins: list[str] = []
    data: Data
    tasks: dict[str, Task] = Field(min_length=1)
    history: History = History()
    split: Split = Split()
    features: Features = Features()
    backbone: Annotated[Backbone, BeforeValidator(_backbone)] = Backbone()
    adapter: Adapter = Adapter()
    towers: Towers = Towers()
    train: Train = Train()
    engine: Engine = Engine()
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _layout_fits_tasks(self) -> Self:
        for name, task in self.tasks.items():
            if self.data.layout == "behaviours" and task.event is None:
                raise ValueError(f"tasks.{name}: layout 'behaviours' needs `event`, not `label`")
            if self.data.layout == "impressions" and task.event is not None:
                raise ValueError(f"tasks.{name}: layout 'impressions' needs `label`, not `event`")
        return self
