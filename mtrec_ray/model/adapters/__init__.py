"""Ways of tuning a backbone: one file a kind, all behind `add_adapter`."""

from mtrec_ray.model.adapters.add import add_adapter
from mtrec_ray.model.trained import Trained, trained_parts

__all__ = ["Trained", "add_adapter", "trained_parts"]
