"""Generated interaction logs whose truth is known.

`write_sample` writes the small one of `mtrec quickstart`; `write_scenario` writes one of `SCENARIOS`, with what can be
known of it at best and what simple methods know.
"""

from mtrec_ray.data.sample.quickstart import SampleSummary, write_sample
from mtrec_ray.data.sample.scenario import Scenario, Size
from mtrec_ray.data.sample.scenarios import QUICKSTART_SCENARIO, SCENARIOS, scenario_named
from mtrec_ray.data.sample.simulate import World
from mtrec_ray.data.sample.writing import Generated, write_scenario

__all__ = [
    "QUICKSTART_SCENARIO",
    "SCENARIOS",
    "Generated",
    "SampleSummary",
    "Scenario",
    "Size",
    "World",
    "scenario_named",
    "write_sample",
    "write_scenario",
]
