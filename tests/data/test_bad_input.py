"""Bad input by the hundred: whatever is wrong, `prepare` and `init` do what can be done, or refuse it in one message.

Each example is a small setup of parts that may be there, with up to three damages (`bad_input.damages`) done to it;
`bad_input.outcome` says what may come of that. MTREC_EXAMPLES=5000 tries so many, other ones each time.
"""

import contextlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, currently_in_test_context, given, note, settings
from hypothesis import strategies as st

from tests.data.bad_input.damages import DAMAGES, Damage, damage
from tests.data.bad_input.outcome import Outcome, outcome
from tests.data.bad_input.parts import make

EXAMPLES = int(os.environ.get("MTREC_EXAMPLES", "0"))
CHOSEN = st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3, unique=True)
CHANCE = st.randoms(use_true_random=False)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def tried(verb: str, chance: random.Random, chosen: list[Damage]) -> Outcome:
    """The outcome in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        setup = make(Path(folder), chance)
        damage(setup, chosen)
        if currently_in_test_context():
            note(f"{verb} after {[one.__name__ for one in chosen]}, by {setup.config}")
        return outcome(setup, verb)


@settings(max_examples=EXAMPLES or 40, derandomize=not EXAMPLES, suppress_health_check=SLOW)
@given(CHANCE, CHOSEN)
def test_prepare_does_what_can_be_done_or_refuses(chance: random.Random, chosen: list[Damage]) -> None:
    tried("prepare", chance, chosen)


@settings(max_examples=EXAMPLES or 40, derandomize=not EXAMPLES, suppress_health_check=SLOW)
@given(CHANCE, CHOSEN, st.sampled_from(["init", "init alone"]))
def test_init_proposes_a_config_or_refuses(chance: random.Random, chosen: list[Damage], verb: str) -> None:
    tried(verb, chance, chosen)


@pytest.mark.parametrize("seed", range(8))
def test_setups_without_damage_are_prepared(seed: int) -> None:
    assert tried("prepare", random.Random(seed), []).kind == "done"


@pytest.mark.parametrize("one", DAMAGES, ids=lambda one: one.__name__)
def test_each_damage_alone(one: Damage) -> None:
    tried("prepare", random.Random(1), [one])
