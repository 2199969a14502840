"""`mtrec check` on damaged setups: findings, or one message; see `tests/data/test_bad_input.py`."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.bad_input.damages import Damage
from tests.data.test_bad_input import CHANCE, CHOSEN, EXAMPLES, SLOW, tried


@settings(max_examples=EXAMPLES or 5, derandomize=not EXAMPLES, suppress_health_check=SLOW)
@given(CHANCE, CHOSEN, st.sampled_from(["check", "check logs"]))
def test_check_finds_what_can_be_found_or_refuses(chance: random.Random, chosen: list[Damage], verb: str) -> None:
    tried(verb, chance, chosen)


def test_a_setup_without_damage_is_checked() -> None:
    assert tried("check", random.Random(3), []).kind in ("done", "found")
