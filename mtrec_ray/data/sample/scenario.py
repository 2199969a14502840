"""A scenario: every strength of a generated log, declared before any method is tuned on it.

A label of stage s, given that its parent's label is 1, is 1 with the probability whose log-odds are

    bias_s + activity_s a_u(t) + taste_s (h_u(t) + g) . x_i + quality_s e_i
    + style_s f_i - price_s p_i - age_s log(1 + days since i appeared) + pair_s m(i, seed)
    + [root stages] domain bias - position_s * (domain's position factor) * log(1 + position)

a_u(t), h_u(t): the user's activity and tastes, normal around the mean of the user's segment, renewed in part every day.
g: the intent of the session, normal, drawn anew in each. e_i: what only the item's id tells. x_i: shares of topics,
f_i: style, both read in the title. p_i: standardised log price. m: how well i goes with the item on whose page it is
shown. A logarithm of dwell time is normal around the same kind of sum.
"""

from dataclasses import dataclass, field

from mtrec_ray.errors import ConfigError

MINUTE, HOUR, DAY = 60, 3_600, 86_400
CLICK_DELAY = MINUTE
"""Seconds after which a root stage's label, 0 or 1, is known."""


@dataclass(frozen=True)
class Loads:
    """How much of each part of the sum above a signal has; of a stage or of dwell time."""

    taste: float = 1.0
    activity: float = 1.0
    quality: float = 1.0
    style: float = 1.0
    price: float = 0.0
    age: float = 0.0
    pair: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A binary signal; without `parent` it can follow every exposure."""

    name: str
    bias: float
    loads: Loads
    parent: str | None = None
    position: float = 0.0
    delay: float = CLICK_DELAY
    """Median seconds from the parent's feedback to this one's."""
    delay_spread: float = 1.5
    """Standard deviation of the delay's logarithm; the distribution is cut where the window ends."""
    window: int = CLICK_DELAY
    """Seconds after the exposure within which feedback comes, and after which a label of 0 is known."""
    tracked: float = 1.0
    """Share of the users whose labels are observed."""
    surveyed: float = 1.0
    """Share of the rows where the parent happened whose label is observed, at random; elsewhere it is a certain 0."""


@dataclass(frozen=True)
class Dwell:
    """Log seconds spent, observed where the root stage's label is 1; known `window` seconds after the exposure."""

    mean: float
    noise: float
    loads: Loads
    window: int = 10 * MINUTE


@dataclass(frozen=True)
class Domain:
    name: str
    share: float
    """Of the requests where the domains share their users, else of the users."""
    bias: float = 0.0
    position: float = 1.0
    """Factor of the position's effect."""


@dataclass(frozen=True)
class Scenario:
    name: str
    stages: tuple[Stage, ...]
    dwell: Dwell | None = None
    domains: tuple[Domain, ...] = (Domain("home", 1.0),)
    shared_users: bool = True
    shared_items: bool = True
    segments: int = 4
    segment_spread: float = 0.6
    """Standard deviation of the segments' mean tastes."""
    hidden_segments: bool = False
    """Whether the table of users does not say the segment, so that only the social graph shows it."""
    taste_spread: float = 1.8
    """Standard deviation of a user's tastes around the segment's mean."""
    activity_spread: float = 0.5
    intent_spread: float = 0.6
    drift: float = 0.02
    """Share of the variance of tastes and activity that is renewed every day."""
    quality_spread: float = 0.8
    style_scale: float = 1.5
    """Factor of the styles' effects."""
    new_items: float = 0.3
    """Share of the items that appear after the first day, evenly over the days."""
    life_days: int | None = None
    """Days for which an item is shown; then items come evenly over all days, whatever `new_items`."""
    new_users: float = 0.3
    sessions_per_day: float = 0.25
    """Mean over the users; theirs differ."""
    requests_per_session: float = 2.0
    slate: tuple[int, int] = (4, 8)
    """Fewest and most items of a request."""
    random_share: float = 0.05
    """Share of the requests whose items are drawn uniformly: policy `random`."""
    affinity: float = 1.0
    """How much the logging policy follows the topics that the user has clicked."""
    popularity: float = 1.0
    """How much it follows the items' rates of clicks."""
    promotion: float = 0.7
    """Standard deviation of what else it prefers items for, which has nothing to do with their quality."""
    seeded: bool = False
    """Whether each request is on the page of an item, whose title is the query."""
    user_graph: bool = False
    item_graph: bool = False

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def chain(self, name: str) -> tuple[Stage, ...]:
        """The stage after all that must have happened before it, the root first."""
        stage = self.stage(name)
        before = self.chain(stage.parent) if stage.parent is not None else ()
        return (*before, stage)

    @property
    def root(self) -> Stage:
        """The first stage without a parent: what the logging policy counts, and what dwell time follows."""
        return next(stage for stage in self.stages if stage.parent is None)


@dataclass(frozen=True)
class Size:
    """What is generated of a scenario. Raises `ConfigError` for sizes that cannot be."""

    users: int = 2000
    items: int = 500
    days: int = 30
    seed: int = 0
    bots: float = 0.0
    """Share of the users that are programs, whose clicks mean nothing."""
    first_day: int = field(default=19_723)
    """Days since 1970; the default is 2024-01-01."""

    def __post_init__(self) -> None:
        if self.users < 1 or self.items < 100 or self.days < 5 or not 0 <= self.bots < 1:
            raise ConfigError(
                "A scenario needs at least 1 user, 100 items, 5 days, and a share of bots below 1; found users="
                f"{self.users}, items={self.items}, days={self.days}, bots={self.bots}."
            )

    @property
    def start(self) -> int:
        """Seconds since 1970."""
        return self.first_day * DAY

    @property
    def train_until(self) -> int:
        """The last fifth of the days is test, the tenth before it validation; at least a day each. Seconds."""
        return self.valid_until - max(1, self.days // 10) * DAY

    @property
    def valid_until(self) -> int:
        return self.start + (self.days - max(1, self.days // 5)) * DAY
