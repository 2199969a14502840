"""The typed run config: one frozen model per part, unknown keys refused, one home per default.

A run is one YAML file (`mtrec_ray.config_file.load`). Units are in names or docstrings: durations are seconds
after parsing and may be written as `30s`, `10m`, `1h`, `7d`. This module imports neither ray nor torch.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from mtrec_ray.labels import BUILT_IN, DELAYED

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_OF_LABELS = ("label", "event", "value", "observed", "feedback_time", "feedback_delay")
"""What a task without labels cannot have."""


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
    row_weight: str | None = None
    """A number of at least 0: how much the row counts in all losses."""
    sampling_rate: str | None = None
    """A number above 0 and at most 1: the share of such rows that the log kept, as 0.1 for negatives kept at 10 %."""
    position: str | None = None
    """A whole number of at least 0: the place on the page; empty = unknown."""
    propensity: str | None = None
    """A number above 0 and at most 1: the probability with which the policy showed the item at that place; empty =
    unknown."""
    policy: str | None = None
    """Which logging policy chose the row, as `random`; may be empty."""
    domain: str | None = None
    """Surface or scenario, as `home` or `search`; may be empty."""
    query: str | None = None
    """What was searched for; it stands before the candidate's text, and at most half of `history.candidate_tokens` is
    for it. Histories have no queries."""


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
    the candidate's user and item is the label; with `value` (regression) the label is that column's value. A kind that
    is an objective over what is shown, as `diversity`, has neither.
    """

    kind: str = "binary"
    label: str | None = None
    event: str | None = None
    value: str | None = None
    observed: str | None = None
    classes: int | None = Field(default=None, ge=2)
    """Number of classes of the kinds `multiclass` and `ordinal`; labels are 0 .. classes-1."""
    params: dict[str, Any] = {}
    """Of the kind, as `{loss: focal, gamma: 2}`; see the kind's class in `mtrec_ray.tasks`."""
    parent: str | None = None
    """The task without which this one cannot happen, as click for purchase; of an objective over what is shown, the
    task that orders it."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    feedback_time: str | None = None
    """Column with the time at which the label became known; an absent time keeps it out of the history."""
    feedback_delay: Duration | None = None
    """The label becomes known this long after the row's time; without this and `feedback_time` it enters no history."""
    window: Annotated[Duration, Field(gt=0)] | None = None
    """Of labels 0 and 1, as `7d`: feedback counts if it comes so long after the row at the latest. Its time must be
    known: `event`, or `label` with `feedback_time`. See `data.requests.attribution`."""
    inside_window: Literal["unobserved", "negative", "excluded"] | None = None
    """Train rows whose window was not over when the train period ended. `excluded`, the default: none of them has a
    label, whatever came, and the rate of the others is right. `unobserved`: those without feedback so far have no
    label, and so the rate is too high. `negative`: they have label 0, and the rate is too low; kind `delayed` takes
    them so and corrects for it."""

    @property
    def labelled(self) -> bool:
        """Whether the log says what came of a row; else the task's labels are all missing."""
        return self.label is not None or self.event is not None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in _OF_LABELS if getattr(self, name) is not None]
        if BUILT_IN.get(self.kind) == "none" and given:
            raise ValueError(
                f"kind '{self.kind}' is an objective over what is shown, without a label; remove `{given[0]}`"
            )
        # a guest's kind may need none either: that is known, and checked, where its module is imported
        lacks_label = not self.labelled and (bool(given) or BUILT_IN.get(self.kind, "none") != "none")
        if lacks_label or {"label", "event"} <= set(given):
            raise ValueError("a task needs exactly one of `label` (impressions) and `event` (behaviours)")
        if self.feedback_time is not None and self.feedback_delay is not None:
            raise ValueError("feedback_time and feedback_delay exclude each other")
        if self.kind in BUILT_IN and (BUILT_IN[self.kind] == "class") != (self.classes is not None):
            raise ValueError("`classes` belongs to the kinds 'multiclass' and 'ordinal', and is needed there")
        return self

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.window is None:
            if self.kind == DELAYED:
                raise ValueError(f"kind '{DELAYED}' needs `window`, as 7d: how long feedback may come after the row")
            if self.inside_window is not None:
                raise ValueError("inside_window needs `window`")
            return self
        if BUILT_IN.get(self.kind, "binary") != "binary" or self.value is not None:
            raise ValueError(f"`window` is for labels 0 and 1, and kind '{self.kind}' has others; remove it")
        if self.event is None and self.feedback_time is None:
            raise ValueError("`window` needs `feedback_time`, the column with the time at which the feedback came")
        if self.kind == DELAYED and self.inside_window not in (None, "negative"):
            raise ValueError(
                f"inside_window is {self.inside_window}, but kind '{DELAYED}' learns from the rows inside the window, "
                "as `negative`; leave inside_window out"
            )
        return self

    @property
    def inside(self) -> Literal["unobserved", "negative", "excluded"]:
        """`inside_window`, with its default."""
        return self.inside_window or ("negative" if self.kind == DELAYED else "excluded")


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


class ItemText(Part):
    """Other texts of the same items: from a table with several rows per item, or made by a function."""

    path: str | None = None
    """File, folder, glob or URL of the table (CSV, JSONL or Parquet)."""
    key: str | None = None
    text: str | None = None
    """Template over the table's columns, as `data.items.text`."""
    function: str | None = None
    """Name of a function that a plugin has registered with `data.streaming.augment.item_text.AUGMENTERS`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        table = (self.path, self.key, self.text)
        if (None in table) == (self.function is None) or (self.function is not None and any(table)):
            raise ValueError("give a table as `path`, `key` and `text`, or a `function`, and not both")
        return self


class Augment(Part):
    """Changes to the train requests, drawn anew in every epoch; see `mtrec_ray.data.streaming.augment`.

    Side features and aggregates stay as they are. What is validated, tested and scored is never changed.
    """

    history_crop: Share = 0.0
    """Share of requests whose history is cut to a part of it in a row, of any length and at any place."""
    history_mask: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the events that are left out of the histories."""
    history_reorder: Share = 0.0
    """Share of a history's events, in a row, that are shuffled."""
    token_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens of events and candidates that are replaced by random ones."""
    item_text: ItemText | None = None
    """Each event and candidate has one of its item's texts, the item's own among them.

    A text is cut to as many tokens as the one it stands for, since steps are planned by their tokens before: let the
    longest be that of `data.items.text`.
    """
    negatives: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share that is kept of the candidates whose observed labels are all 0; each then counts 1 / share in the loss."""


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


ADAPTER_FIELDS: dict[str, frozenset[str]] = {
    "lora": frozenset({"rank", "alpha", "dropout", "targets", "top_layers"}),
    "dora": frozenset({"rank", "alpha", "dropout", "targets", "top_layers"}),
    "adalora": frozenset({"rank", "alpha", "dropout", "orthogonality", "targets", "top_layers"}),
    "ia3": frozenset({"targets", "top_layers"}),
    "prefix": frozenset({"prefix_tokens", "top_layers"}),
    "bottleneck": frozenset({"bottleneck_width", "dropout", "top_layers"}),
    "full": frozenset({"top_layers"}),
    "frozen": frozenset(),
}
"""Fields of `adapter` that mean something, by `adapter.kind`."""
RESOLVED = "resolved"
"""Key of pydantic's validation context: the values are those of a checked config and a search, not a user's own."""


class Adapter(Part):
    """Which weights of the backbone are trained, or are put into it and trained."""

    kind: Literal["lora", "dora", "adalora", "ia3", "prefix", "bottleneck", "full", "frozen"] = "lora"
    """`lora`, `dora`, `adalora`: low-rank updates of linear modules. `ia3`: scales of keys, values and feed-forward
    activations. `prefix`: keys and values that every token sees. `bottleneck`: small networks behind the feed-forwards.
    `full`: the backbone's own weights. `frozen`: nothing."""
    rank: PositiveInt = 8
    """`adalora`: the mean over the adapted modules, in the end."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """A low-rank update counts alpha / rank times (`adalora`: alpha / the rank it starts with)."""
    dropout: Dropout = 0.0
    """Of what an adapter reads."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """`adalora`: weight in the loss of how far the singular vectors are from orthogonal ones."""
    prefix_tokens: PositiveInt = 16
    """`prefix`: trained keys and values in each layer."""
    bottleneck_width: PositiveInt = 32
    targets: str | list[str] = "auto"
    """Module names, or one regular expression over them, as PEFT's target_modules; `all-linear`: every linear module of
    the layers. `auto`: the same, but for `ia3` keys, values and the feed-forwards' activations."""
    top_layers: PositiveInt | None = None
    """Only the last n layers get adapters; `full`: are trained, with the norm after them."""

    @model_validator(mode="after")
    def _fields_of_its_kind(self, info: ValidationInfo) -> Self:
        idle = sorted(self.model_fields_set - ADAPTER_FIELDS[self.kind] - {"kind"})
        if idle and RESOLVED not in (info.context or ()):
            kinds = ", ".join(kind for kind, fields in ADAPTER_FIELDS.items() if idle[0] in fields)
            raise ValueError(
                f"kind {self.kind} has no {', '.join(idle)}; remove it, or take a kind that has it ({kinds})"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written out can be read again."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name == "kind" or name in ADAPTER_FIELDS[self.kind]}


class Towers(Part):
    """From z, the candidate's representation, to one logit vector per task."""

    kind: str = "shared_bottom"
    """`shared_bottom`, `mmoe`, `cgc`, `ple`, `cross_stitch`, `aitm`, `star`, `mtl_lora`, or a plugin's."""
    params: dict[str, Any] = {}
    """Of the kind, as `{experts: 8}`; see the kind's class in `mtrec_ray.model.towers`."""
    z_dim: PositiveInt = 128
    hidden: list[PositiveInt] = [64]
    """Layers of a task's tower; what `mtl_lora` updates and `cross_stitch` mixes."""
    dropout: Dropout = 0.1


class Position(Part):
    """What the place on the page does to a label, apart from what the candidate does; see `mtrec_ray.model.position`.

    Candidates are scored as if all were shown at the place `reference`.
    """

    method: Literal["none", "additive", "pal", "feature"] = "none"
    """`additive`: a number per place and task is added to the logit. `pal`: a label of 1 needs that the candidate is
    looked at, the probability of which depends on the place alone. `feature`: the place is a side feature like others,
    for comparison."""
    reference: Annotated[int, Field(ge=0)] = 0
    """A place that train rows have."""
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    """Whose labels `additive`, `pal` and `inverse_propensity` are for; by default all with labels 0 and 1."""
    dropout: Dropout = 0.0
    """Share of the places that are taken for unknown in training."""
    inverse_propensity: bool = False
    """Whether labels count 1 / `data.columns.propensity`, the probability of the row being shown there; unknown = 1."""
    clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10.0
    """`inverse_propensity`: a label counts so much at most."""

    @model_validator(mode="after")
    def _nothing_idle(self, info: ValidationInfo) -> Self:
        if RESOLVED in (info.context or ()):
            return self
        if self.tasks is not None and self.method in ("none", "feature") and not self.inverse_propensity:
            raise ValueError(
                "tasks belongs to the methods additive and pal and to inverse_propensity, and method is "
                f"{self.method}; remove it"
            )
        return self


class Balance(Part):
    """How the tasks' gradients are combined, beside the tasks' weights; see `mtrec_ray.multitask.balancing`."""

    method: str = "sum"
    params: dict[str, Any] = {}
    """Of the method; see its class."""
    scope: Literal["micro_step", "step"] = "micro_step"
    """What a method looks at to weigh the tasks: each micro-step of all ranks, or the whole step, which makes the
    result independent of how it is cut and costs one more forward pass."""
    conflict: bool = True
    """Whether the cosines between the tasks' gradients are measured, at every logged step."""


class Stage(Part):
    """A part of the run in which only some of the weights are trained."""

    until: Annotated[float, Field(gt=0, le=1)]
    """Share of all steps at which it ends; the last stage ends at 1."""
    train: list[Literal["adapters", "towers", "tables"]] = Field(default=["adapters", "towers", "tables"], min_length=1)
    """Groups of weights, as in `train.learning_rate`."""
    layers: Annotated[int, Field(ge=0)] | None = None
    """Of `adapters`, only those of this many layers from the top; all by default."""


class Strategy(Part):
    """What a step trains: which of the tasks, and which of the weights."""

    tasks: Literal["joint", "round_robin", "proportional", "annealed"] = "joint"
    """`joint`: all of them in each step. Else one a step: in turn, drawn by their numbers of labels, or so that small
    tasks come up more often as time goes on."""
    stages: list[Stage] = []
    """One after the other, as `[{until: 0.3, train: [towers, tables]}, {until: 0.6, layers: 1}, {until: 1}]`."""

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[Stage]) -> list[Stage]:
        ends = [stage.until for stage in stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"stages must end one after the other and the last one at 1, but `until` is {ends}")
        return stages


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

    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: PositiveInt | None = None
    batch_requests: PositiveInt = 32
    """Requests per optimizer step, over all workers."""
    micro_tokens: PositiveInt = 8192
    """Most tokens of one forward pass on one worker; a longer single request still goes alone."""
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
    """Validation metric that chooses the best checkpoint, as `like/auc`; `auto` = mean AUC of the binary tasks.

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


def _joint(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class JointMethod(Part):
    """One way to learn all tasks together: what `balance` says, and its defaults for what is not given here."""

    method: str
    """Name of a balance method; `sum` is the plain weighted sum."""
    params: dict[str, Any] = {}
    scope: Literal["micro_step", "step"] | None = None
    """`balance.scope` of the config by default."""


class Compare(Part):
    """What `mtrec compare` sets beside each task learned alone."""

    methods: list[Annotated[JointMethod, BeforeValidator(_joint)]] = [JointMethod(method="sum")]
    """Names of balance methods, or mappings as `{method: cagrad, params: {c: 0.2}}`; each is one joint training."""
    variants: dict[str, dict[str, Any]] = {}
    """Further joint trainings: name -> values by dotted path in which the config is another one, as
    `wide: {towers.hidden: [256, 128]}`."""
    seeds: int | list[int] = 3
    """How often everything is trained: so many seeds from the config's `seed` on, or a list of them."""
    metrics: dict[str, str] = {}
    """Task -> the metric that counts, as `rating: mae`; by default the main one of the task's kind."""

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: int | list[int]) -> int | list[int]:
        listed = value if isinstance(value, list) else [value - 1]
        if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
            raise ValueError(f"{value} is no number of trainings; give 1 or more, or different seeds as [0, 1, 2]")
        return value


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
    augment: Augment = Augment()
    backbone: Annotated[Backbone, BeforeValidator(_backbone)] = Backbone()
    adapter: Adapter = Adapter()
    towers: Towers = Towers()
    position: Position = Position()
    balance: Balance = Balance()
    strategy: Strategy = Strategy()
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
    def _layout_fits_tasks(self) -> Self:
        for name, task in self.tasks.items():
            if self.data.layout == "behaviours" and task.label is not None:
                raise ValueError(f"tasks.{name}: layout 'behaviours' needs `event`, not `label`")
            if self.data.layout == "impressions" and task.event is not None:
                raise ValueError(f"tasks.{name}: layout 'impressions' needs `label`, not `event`")
        return self
