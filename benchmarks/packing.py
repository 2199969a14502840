"""Packed requests against one sequence per candidate: forward + backward with LoRA, one thread.

    python benchmarks/packing.py [--rounds 9] [--json packing.json]

The other side is in its best case: all its sequences have the same length, so they are one batch without padding under
transformers' own attention; where they cannot (the staircase) it is the faster of one sequence after the other and of
one row without padding. The variants take turns, and medians are compared, of processor time: with one thread that
is the time on an idle machine. Quick cases take more turns.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone, Mode
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.nano import build_nano

VOCABULARY = 2048
# (history tokens, candidates, tokens of each) and the least factor we promise.
SHARED_END = {(64, 8, 12): None, (200, 4, 12): 3.0, (200, 16, 12): 7.5, (512, 8, 16): 5.5}
STAIRCASE = {(60, 8): 10.0}  # (events, tokens of each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=9, help="timed turns of each variant, three times as many below 0.5 s"
    )
    parser.add_argument("--json", type=Path, default=Path("packing.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packed, separate = _backbone("packed"), _backbone("separate")
    rows = []
    for (history, candidates, tokens), target in SHARED_END.items():
        layout = RequestLayout.from_lengths([history], [[tokens] * candidates], [[history] * candidates])
        variants = {"packed": _step(packed, layout), "batch": _step(separate, layout)}
        rows.append(_measure(f"history {history}, {candidates} x {tokens}", variants, arguments.rounds, target))
    for (events, tokens), target in STAIRCASE.items():
        ends = [event * tokens for event in range(events)]
        layout = RequestLayout.from_lengths([ends[-1]], [[tokens] * events], [ends])
        flat = RequestLayout.from_lengths(ends, [[tokens]] * events, [[end] for end in ends])
        single = [RequestLayout.from_lengths([end], [[tokens]], [[end]]) for end in ends]
        variants = {
            "packed": _step(packed, layout),
            "one by one": _steps([_step(separate, one) for one in single]),
            "one row": _step(packed, flat),
        }
        rows.append(_measure(f"staircase {events} x {tokens}", variants, arguments.rounds, target))
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    _print(rows)


def _backbone(mode: Mode) -> Backbone:
    backbone = Backbone(build_nano(VOCABULARY, width=256, layers=6, heads=8), mode=mode)
    add_adapter(backbone, Adapter(rank=8, alpha=16.0), seed=0)
    return backbone.train()


def _step(backbone: Backbone, layout: RequestLayout) -> Callable[[], None]:
    ids = torch.randint(VOCABULARY, (layout.length,), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        layout.cache.clear()  # in training every row is a new one
        backbone(ids, layout).sum().backward()
        backbone.zero_grad(set_to_none=True)

    return step


def _steps(steps: list[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def _measure(name: str, variants: dict[str, Callable[[], None]], rounds: int, target: float | None) -> dict:
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant, step in variants.items():
        step()  # warms up
        seconds[variant].append(_processor_seconds(step))
    if max(times[0] for times in seconds.values()) < 0.5:
        rounds *= 3
    for _ in range(rounds - 1):
        for variant, step in variants.items():
            seconds[variant].append(_processor_seconds(step))
    medians = {variant: statistics.median(times) for variant, times in seconds.items()}
    others = {variant: median for variant, median in medians.items() if variant != "packed"}
    best = min(others, key=others.__getitem__)
    return {
        "case": name,
        "packed_s": medians["packed"],
        "separate_s": others[best],
        "separate": best,
        "speedup": others[best] / medians["packed"],
        "target": target,
        "medians_s": medians,
    }


def _processor_seconds(step: Callable[[], None]) -> float:
    gc.collect()
    begin = time.process_time()
    step()
    return time.process_time() - begin


def _print(rows: list[dict]) -> None:
    print(f"{'case':<24}{'packed ms':>10}{'separate ms':>13}{'by':>12}{'speed-up':>10}{'at least':>10}")
    for row in rows:
        print(
            f"{row['case']:<24}{row['packed_s'] * 1e3:>10.1f}{row['separate_s'] * 1e3:>13.1f}{row['separate']:>12}"
            f"{row['speedup']:>10.2f}{row['target'] or '-':>10}"
        )


if __name__ == "__main__":
    main()
