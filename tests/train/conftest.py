"""What tests of training share."""

from collections.abc import Iterator

import pytest
import torch

from tests.model.models import true_float64


@pytest.fixture
def float64() -> Iterator[None]:
    """All that is made and computed is float64; the data stay float32."""
    before = torch.get_default_dtype()
    with true_float64():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
