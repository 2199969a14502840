"""A task: its label, its kind, and when the label is known."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mtrec_ray.config.part import Duration, Part
from mtrec_ray.labels import BUILT_IN, DELAYED

_OF_LABELS = ("label", "event", "value", "observed", "feedback_time", "feedback_delay")


class Task(Part):
    """One label with a loss and metrics.

    `impressions`: `label` is an expression over the log's columns (`click`, `rating >= 4`); it is unobserved where
    the expression is NaN or `observed` is false. `behaviours`: `event` names the event type whose occurrence on
    the candidate's user and item is the label; with `value` (regression) the label is that column's value. So it is
    with `impressions` whose feedback has files of its own (`data.feedback`). A kind that is an objective over what is
    shown, as `diversity`, has neither.
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

    @property
    def dated(self) -> bool:
        """Whether the log says when feedback came, and so of each positive label, but of no negative one, its time."""
        return self.event is not None or self.feedback_time is not None

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
            raise ValueError(
                "a task needs exactly one of `label` (an expression over the log's columns) and `event` (a type of "
                "event, or of feedback in files of its own)"
            )
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
