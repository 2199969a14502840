"""The scenarios, each with strengths that were fixed before any method was tuned on them; see docs/LOG.md."""

from mtrec_ray.data.sample.scenario import DAY, HOUR, MINUTE, Domain, Dwell, Loads, Scenario, Stage
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

QUICKSTART_SCENARIO = "quickstart"
"""The one that `write_sample` writes; all others are in `SCENARIOS`."""

_SHOP = (Domain("home", 0.6), Domain("search", 0.4, bias=0.4, position=1.4))
_LIKE = Loads(taste=0.9, activity=0.5, quality=0.8, style=-1.0)
_SPENT = Loads(taste=0.35, activity=0.2, quality=0.3, style=0.2)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "ecommerce",
            (
                Stage("click", -2.8, Loads(price=0.3), position=0.35),
                Stage("cart", -1.3, Loads(taste=0.8, quality=0.9, style=0.7, price=0.5), "click", delay=5 * MINUTE,
                      window=DAY),
                Stage("purchase", -0.6, Loads(taste=0.5, quality=0.9, style=0.6, price=0.6), "cart", delay=2 * HOUR,
                      window=2 * DAY, tracked=0.7),
            ),
            domains=_SHOP,
        ),
        Scenario(
            "ads",
            (
                Stage("click", -3.2, Loads(), position=0.5),
                Stage("conversion", -1.4, Loads(taste=0.7, quality=0.9, style=0.6, price=0.5), "click", delay=8 * HOUR,
                      delay_spread=1.2, window=3 * DAY, tracked=0.85),
            ),
            domains=(Domain("news_app", 0.5), Domain("game_app", 0.5, bias=-0.4)),
            shared_users=False,
            slate=(2, 5),
            sessions_per_day=0.4,
        ),
        Scenario(
            "video",
            (
                Stage("click", -2.1, Loads(age=0.1), position=0.3),
                Stage("finish", -0.3, Loads(taste=0.9, activity=0.3, style=-0.6), "click", delay=4 * MINUTE,
                      window=HOUR),
                Stage("like", -2.2, _LIKE, "click", delay=3 * MINUTE, window=DAY),
            ),
            dwell=Dwell(4.0, 0.7, _SPENT),
            intent_spread=0.8,
        ),
        Scenario(
            "music",
            (
                Stage("play", -1.6, Loads(), position=0.15),
                Stage("finish", 0.3, Loads(taste=0.9, activity=0.3, style=-0.4), "play", delay=4 * MINUTE,
                      window=HOUR),
                Stage("save", -2.0, _LIKE, "play", delay=3 * MINUTE, window=DAY),
            ),
            dwell=Dwell(4.6, 0.6, _SPENT),
            intent_spread=1.0,
            drift=0.01,
            new_items=0.15,
        ),
        Scenario(
            "news",
            (
                Stage("click", -2.2, Loads(age=0.5, style=1.3), position=0.5),
                Stage("like", -2.0, _LIKE, "click", delay=10 * MINUTE, window=DAY, surveyed=0.5),
            ),
            dwell=Dwell(3.6, 0.8, _SPENT),
            life_days=5,
            drift=0.04,
        ),
        Scenario(
            "social",
            (
                Stage("click", -2.2, Loads(age=0.2), position=0.3),
                Stage("like", -1.2, _LIKE, "click", delay=3 * MINUTE, window=DAY),
                Stage("share", -2.4, Loads(taste=0.8, quality=0.9, style=1.2), "click", delay=HOUR, window=DAY),
            ),
            dwell=Dwell(3.2, 0.8, _SPENT),
            domains=(Domain("feed", 0.7), Domain("groups", 0.3, bias=0.3, position=0.5)),
            shared_items=False,
            segments=12,
            segment_spread=1.0,
            hidden_segments=True,
            taste_spread=1.5,
            life_days=10,
            user_graph=True,
        ),
        Scenario(
            "item_to_item",
            (
                Stage("click", -3.2, Loads(pair=1.2), position=0.3),
                Stage("purchase", -1.2, Loads(taste=0.6, quality=0.9, style=0.6, price=0.5, pair=0.4), "click",
                      delay=2 * HOUR, window=2 * DAY, tracked=0.8),
            ),
            seeded=True,
            item_graph=True,
            taste_spread=1.6,
        ),
    )
}  # fmt: skip


def scenario_named(name: str) -> Scenario:
    """Raises `ConfigError` for an unknown name."""
    if name not in SCENARIOS:
        raise ConfigError(f"No scenario '{name}'.{suggest(name, [QUICKSTART_SCENARIO, *SCENARIOS])}")
    return SCENARIOS[name]
