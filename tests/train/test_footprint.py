import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mtrec_ray.train.footprint import peak_memory_mib, trained_parameters


def test_only_what_is_trained_counts():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    assert trained_parameters(model) == 3 * 5 + 5 + 5 * 2 + 2
    model[0].requires_grad_(False)
    assert trained_parameters(model) == 5 * 2 + 2


def test_a_parameter_that_zero_shards_counts_whole():
    model = nn.Linear(3, 5)
    model.weight.ds_numel = 15
    model.weight.data = torch.empty(0)
    assert trained_parameters(model) == 15 + 5


def test_without_a_gpu_it_is_the_most_that_the_process_held():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    peak = peak_memory_mib(torch.device("cpu"))
    kernel = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    assert peak == pytest.approx(kernel, rel=0.02)


def test_on_a_gpu_it_is_what_torch_held_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert peak_memory_mib(torch.device("cuda", 0)) == 3
