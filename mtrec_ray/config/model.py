"""The model: backbone, adapters, towers, and what the position does."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from mtrec_ray.config.part import Dropout, Part


class Backbone(Part):
    """The shared language model."""

    name: str = "nano"
    """`none` (side features only), `nano` (the built-in decoder, sized below), a Hugging Face name or a path."""
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


class Matching(Part):
    """The vectors of users and items, of tasks of the kinds `retrieval` and `interest_match`; see
    `mtrec_ray.model.matching`.

    An item's is of its id, and of its categories, text and `vectors` in `data.items`; a user's of the history and of
    the `vectors` in `data.users`. Neither reads numbers, a user's id or categories, or what a row of the log says.
    """

    dim: PositiveInt = 64
    similarity: Literal["cosine", "dot"] = "cosine"
    """`cosine`: the vectors have length 1, and each task learns what their inner product is multiplied with. `dot`: the
    plain inner product."""
    shared: bool = False
    """Whether all these tasks share the vectors, so that one index of items serves them all. What is shown next and
    what is liked pull them apart (docs/RESULTS.md)."""


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
