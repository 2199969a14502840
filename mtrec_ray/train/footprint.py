"""What a training takes beside time: the weights that it trains, and the memory of its process."""

import resource
import sys

import torch
from torch import nn

from mtrec_ray.engine.base import trained
from mtrec_ray.model.row_table import row_tables

_MIB = 2**20


def trained_parameters(model: nn.Module) -> int:
    """How many numbers are trained, over all ranks: ZeRO-3 leaves a rank a part of each parameter."""
    tables = sum(table.weight.numel() for table in row_tables(model).values() if table.is_trained)
    return tables + sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in trained(model))


def peak_memory_mib(device: torch.device) -> float:
    """The most that torch held on this process' GPU; without a GPU, the most main memory of the process, its libraries
    (and what it did before) included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB
