"""The words of generated titles: topics, styles with their effect, and noise."""

TOPICS = {
    "cooking": "bread soup oven garlic pasta spice dinner roast butter sauce",
    "travel": "island train hotel coast border ferry visa beach village passport",
    "football": "goal league striker keeper penalty derby transfer coach stadium season",
    "science": "planet atom fossil genome comet theory laboratory quantum neuron telescope",
    "money": "bank market shares pension budget interest mortgage tax profit savings",
    "music": "album concert guitar piano festival singer vinyl chorus drummer orchestra",
    "health": "sleep vitamin doctor muscle allergy therapy diet vaccine heart fever",
    "gardens": "roses seeds compost hedge orchard lawn tulips pruning greenhouse tomato",
}
STYLES = {"guide": 0.5, "review": 0.2, "story": 0.0, "rumour": -0.3, "press": -0.6}
"""Their effect on a logit; a scenario multiplies it."""
NOISE = "new today why how about first again north city year people world week open long after"
