"""From z, the candidate's representation, to each task's logits: one class an architecture, all in `base.TOWERS`."""

from mtrec_ray.model.towers import aitm, cross_stitch, mmoe, mtl_lora, ple, shared_bottom, star
from mtrec_ray.model.towers.base import TOWERS, Towers, check_towers

__all__ = [
    "TOWERS",
    "Towers",
    "aitm",
    "check_towers",
    "cross_stitch",
    "mmoe",
    "mtl_lora",
    "ple",
    "shared_bottom",
    "star",
]
