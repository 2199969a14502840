"""Planted negative transfer: what learning together costs the main task, and how much of it each method wins back.

    python benchmarks/proofs/negative_transfer.py [--seeds 101 102 103 104] [--json negative_transfer.json]

The log: numbers x1 .. x8. `main` is 1 with probability sigmoid(-2 + 1.2 (x1 x2 + x3 x4)). Each of the two tasks beside
it is 1 with probability sigmoid(3 q(x)), q a dense random quadratic form of variance 1, and has nothing in common with
`main`. All tasks read one layer of `WIDTH` units with ReLU, z, by a linear map of their own: whatever is bent must be
bent in z. A product takes four units, so z has room for `main`, but none to spare for the others, which could use any
number, and whose signal is larger. So units go to them: that is the fight.

All runs have the same z, features, steps, rates and first weights; by default the weights that are kept are those with
the best mean validation AUC of all tasks. Lost is what `main` has in AUC on test when learned alone, less what it has
when learned together by the plain sum. A method's share is how much of it is won back, 1 = all of it. What follows z is
wider in the ways called `towers`, which could make `main` better alone too; so their share is also given against `main`
learned alone with the same towers, as 1 - (alone with them - together with them) / lost.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from proof import Trained, by_seed, line, parsed, small_run, summary, trained

from mtrec_ray.config import Run
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.evaluate.metrics import auc

SEEDS = [101, 102, 103, 104]
"""Fixed before anything was tuned, which was done on seed 1."""
ROWS = {"train": 30_000, "valid": 8_000, "test": 30_000}
USERS, NUMBERS, WIDTH = 1000, 8, 16
BESIDE = ("beside_1", "beside_2")
ALONE, SUM = "alone", "plain sum"
ONLY_MAIN = dict.fromkeys(BESIDE, 0.0)
TOWERS: dict[str, dict[str, Any]] = {
    "towers: two layers": {"hidden": [32]},
    "towers: mmoe": {"kind": "mmoe", "params": {"experts": 4, "expert_hidden": [32]}},
    "towers: cgc": {"kind": "cgc", "params": {"expert_hidden": [32]}},
    "towers: ple": {"kind": "ple", "params": {"expert_hidden": [32]}},
    "towers: cross_stitch": {"kind": "cross_stitch", "hidden": [32]},
    "towers: mtl_lora": {"kind": "mtl_lora", "hidden": [32]},
}
WAYS: dict[str, dict[str, Any]] = {
    SUM: {},
    "guard": {"guarded": True},
    "guard, main counts 10": {"guarded": True, "weights": dict.fromkeys(BESIDE, 0.1)},
    "balance: uncertainty": {"balance": {"method": "uncertainty"}},
    "balance: gradnorm": {"balance": {"method": "gradnorm"}},
    "balance: db_mtl": {"balance": {"method": "db_mtl"}},
    "balance: imtl_g": {"balance": {"method": "imtl_g"}},
    "balance: cagrad": {"balance": {"method": "cagrad"}},
    "balance: upgrad": {"balance": {"method": "upgrad"}},
    **{name: {"towers": towers} for name, towers in TOWERS.items()},
}
MAY_LOSE = 0.002
"""AUC, of a guard: below what `main` has alone on the validation rows."""
TARGET = 0.9


def main() -> None:
    arguments = parsed(__doc__, SEEDS)
    result = conclude(by_seed(measured, arguments.seeds), arguments.seeds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1))


def measured(seed: int, place: Path) -> dict[str, float]:
    """Test AUC of `main` of everything that is trained with one seed."""
    pq.write_table(log(np.random.default_rng(seed)), place / "log.parquet")
    data = prepare(config(place, seed), serial_tasks)
    alone = trained(config(place, seed, weights=ONLY_MAIN), data)
    limit = alone.valid_metric - MAY_LOSE
    runs = {name: config(place, seed, limit, **settings) for name, settings in WAYS.items()}
    runs |= {f"{ALONE}, {name}": config(place, seed, weights=ONLY_MAIN, towers=own) for name, own in TOWERS.items()}
    found = {ALONE: area(alone)}
    for name, run in runs.items():
        found[name] = area(trained(run, data))
        print(f"seed {seed} {name}: {found[name]:.4f}, alone {found[ALONE]:.4f}", flush=True)
    return found


def area(found: Trained) -> float:
    """Test AUC of `main`."""
    value = auc(found.test.labels[:, 0], found.test.scores["main"])
    assert value is not None
    return value


def log(rng: np.random.Generator) -> pa.Table:
    """One row per shown item."""
    size = sum(ROWS.values())
    x = rng.normal(size=(size, NUMBERS))
    logits = {"main": -2 + 1.2 * (x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3])}
    for name in BESIDE:
        form = rng.normal(size=(NUMBERS, NUMBERS))
        values = np.einsum("ni,ij,nj->n", x, form + form.T, x)
        logits[name] = 3 * (values - values.mean()) / values.std()
    return pa.table(
        {
            "user": rng.integers(0, USERS, size),
            "item": np.arange(size),
            "time": 1_600_000_000 + np.arange(size),
            "part": np.repeat(list(ROWS), list(ROWS.values())),
            **{name: (rng.random(size) < 1 / (1 + np.exp(-logit))).astype(int) for name, logit in logits.items()},
            **{f"x{i + 1}": x[:, i] for i in range(NUMBERS)},
        }
    )


def config(
    place: Path,
    seed: int,
    limit: float = 0.0,
    guarded: bool = False,
    weights: dict[str, float] | None = None,
    towers: dict[str, Any] | None = None,
    balance: dict[str, Any] | None = None,
) -> Run:
    """`limit`: validation AUC of `main` that a guard holds."""
    weights = {"main": 1.0, **dict.fromkeys(BESIDE, 1.0), **(weights or {})}
    learned = [f"{task}/auc" for task, weight in weights.items() if weight > 0]
    return small_run(
        "negative_transfer",
        place,
        seed,
        data={"numbers": [f"x{i + 1}" for i in range(NUMBERS)]},
        tasks={task: {"label": task, "weight": weight} for task, weight in weights.items()},
        features={"hidden": []},
        towers={"z_dim": WIDTH, **(towers or {})},
        balance={"conflict": False, **(balance or {})},
        train={
            "epochs": 6,
            "metric": learned,
            "guards": {"main/auc": {"no_worse_than": limit}} if guarded else {},
            "learning_rate": {"towers": 1e-2, "tables": 1e-2},
        },
    )


def conclude(found: list[dict[str, float]], seeds: list[int]) -> dict[str, Any]:
    """Prints the tables. `found`: of each seed."""
    areas = {name: summary([of[name] for of in found]) for name in found[0]}
    lost = [of[ALONE] - of[SUM] for of in found]
    print(f"\n| AUC of main | mean | 95 % | seeds {', '.join(map(str, seeds))} |\n|---|---|---|---|")
    for name, figures in areas.items():
        print(line(name, figures))
    print(line("lost by the plain sum", summary(lost), signed=True))
    methods = [name for name in WAYS if name != SUM]
    won = {name: [of[name] - of[SUM] for of in found] for name in methods}
    left = {name: [of[f"{ALONE}, {name}"] - of[name] for of in found] for name in TOWERS}
    shares = {name: summary([w / whole for w, whole in zip(won[name], lost, strict=True)]) for name in methods}
    own = {name: summary([1 - x / whole for x, whole in zip(left[name], lost, strict=True)]) for name in TOWERS}
    print("\n| share of the loss won back | mean | 95 % | by seed |\n|---|---|---|---|")
    for name, figures in shares.items():
        print(line(name, figures, digits=2))
    print("\n| ... against alone with the same towers | mean | 95 % | by seed |\n|---|---|---|---|")
    for name, figures in own.items():
        print(line(name, figures, digits=2))
    held = {"the plain sum loses": summary(lost)["interval"][0] > 0}
    held |= {f"{name} wins back {TARGET:.0%}": figures["mean"] >= TARGET for name, figures in shares.items()}
    print("\n" + "; ".join(f"{name}: {'yes' if yes else 'NO'}" for name, yes in held.items()))
    return {"auc": areas, "lost": summary(lost), "share": shares, "share_of_own": own, "held": held}


if __name__ == "__main__":
    main()
