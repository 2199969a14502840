"""Tiny models, rows and comparisons that the tests of the backbone share."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel
from transformers.models.llama import modeling_llama

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone, load_model
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.nano import build_nano

VOCABULARY = 128
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def tiny(config: str, dtype: torch.dtype = torch.float32, **settings):
    """A model with random weights from the config class called `config`, larger than usual so that differences show."""
    torch.manual_seed(0)
    base = ENCODER if config in ("BertConfig", "RobertaConfig") else DECODER
    settings = {**base, "initializer_range": 0.2, **settings}
    return AutoModel.from_config(getattr(transformers, config)(**settings), dtype=dtype)


def make_model(kind: str):
    """`nano`, `stories` (a trained Llama; skipped where absent) or `bert`."""
    if kind == "nano":
        return build_nano(VOCABULARY, width=32, layers=2, heads=4, kv_heads=2)
    if kind == "bert":
        return tiny("BertConfig")
    if not STORIES.is_dir():
        pytest.skip(f"needs the model in {STORIES}, which is not part of the project")
    return load_model(str(STORIES))


def with_lora(model, **settings) -> Backbone:
    """A backbone in training mode with adapters that are not at their start, where half of them have no gradient."""
    backbone = Backbone(model)
    add_adapter(backbone, Adapter(**{"rank": 4, "alpha": 8.0, **settings}), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return backbone.train()


def with_adapter(model, kind: str, **settings) -> Backbone:
    """The same for any kind: weights that are added are moved away from their start, a little."""
    backbone = Backbone(model)
    add_adapter(backbone, Adapter(kind=kind, **settings), seed=0)
    if kind != "full":
        move(backbone)
    return backbone.train()


@torch.no_grad()
def move(backbone: Backbone, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def shared_end(causal: bool = True) -> RequestLayout:
    """Three requests with uneven candidates that see all of their history; one has no history."""
    return RequestLayout.from_lengths(
        [11, 0, 24], [[3, 1, 5], [2, 4], [6]], [[11, 11, 11], [0, 0], [24]], causal=causal
    )


def staircase() -> RequestLayout:
    """Two requests whose candidates see different shares of their history, the first needs several blocks."""
    ends = [3 * i for i in range(22)]
    return RequestLayout.from_lengths([64, 9], [[8 + i % 5 for i in range(22)], [2, 1, 3]], [ends, [9, 0, 4]])


def no_history(causal: bool = True) -> RequestLayout:
    """Requests without any history: one of many candidates, which need several blocks, and two small ones."""
    lengths = [[6 + i % 7 for i in range(40)], [3], [1, 4]]
    return RequestLayout.from_lengths([0, 0, 0], lengths, [[0] * len(n) for n in lengths], causal=causal)


def token_ids(layout: RequestLayout, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(5, vocabulary, layout.length))


def outputs_and_gradients(backbone: Backbone, layout: RequestLayout, mode: str, **dropout):
    """Outputs [C, D] and the gradient of every trained weight, for a random linear function of the outputs."""
    backbone.mode = mode
    backbone.zero_grad(set_to_none=True)
    ids = token_ids(layout, min(VOCABULARY, backbone.vocab_size))
    hidden = backbone(ids, layout, **dropout)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (hidden * direction.to(hidden)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.requires_grad}
    return hidden.detach(), gradients


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative difference in the L2 norm."""
    return float(((a - b).norm() / b.norm()).detach())


def largest_difference(a, b) -> float:
    """Of outputs, and of all gradients as one vector, as `outputs_and_gradients` gives them.

    One vector, because in a trained model the gradients of some queries and keys cancel to 1e-5 of the whole, where
    float32 leaves them few right digits. `largest_parameter_difference` compares them in float64.
    """
    (hidden_a, gradients_a), (hidden_b, gradients_b) = a, b
    assert gradients_a.keys() == gradients_b.keys()
    whole_a, whole_b = (torch.cat([g.flatten() for g in x.values()]) for x in (gradients_a, gradients_b))
    return max(relative(hidden_a, hidden_b), relative(whole_a, whole_b))


def largest_parameter_difference(a, b) -> float:
    """Of the gradients one by one."""
    assert min(float(g.norm()) for g in b[1].values()) > 0, "a gradient of zero would compare with anything"
    return max(relative(a[1][name], g) for name, g in b[1].items())


@contextmanager
def true_float64():
    """`model.to(float64)` is not float64: Llama's norms and rotary embeddings compute in float32. Here they do not."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        angles = position_ids[..., None].double() * self.inv_freq.double()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
        patch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)
        yield
