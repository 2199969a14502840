"""How much each task counts in a step beyond its config weight: one class a method, all in `method.METHODS`."""

from mtrec_ray.multitask.balancing import (
    aligned_mtl,
    cagrad,
    db_mtl,
    dual_cone,
    dwa,
    fairness,
    famo,
    fixed,
    gradnorm,
    imtl_g,
    loss_scales,
    loss_shapes,
    mgda,
    surgery,
)
from mtrec_ray.multitask.balancing.method import METHODS, Method, Seen

__all__ = [
    "METHODS",
    "Method",
    "Seen",
    "aligned_mtl",
    "cagrad",
    "db_mtl",
    "dual_cone",
    "dwa",
    "fairness",
    "famo",
    "fixed",
    "gradnorm",
    "imtl_g",
    "loss_scales",
    "loss_shapes",
    "mgda",
    "surgery",
]
