"""The start-up probe: does this model give a packed candidate what it gives the candidate alone?

Whether it does is a property of the loaded model that no list of names settles: soft caps, sinks and windows change the
attention; convolutions, state-space and linear-attention layers carry state from one candidate into the next.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mtrec_ray.errors import BackboneError
from mtrec_ray.model.attention import BoolArray
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.layout import RequestLayout

# Norms and rotary embeddings compute in float32 also in a float64 model.
TOLERANCES = {
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}


@dataclass(frozen=True)
class ProbeResult:
    mode: Literal["packed", "separate"]
    difference: float | None
    """largest relative difference of a candidate, packed against separate; None = not compared"""
    reason: str | None
    """why requests are not packed"""

    @property
    def note(self) -> str | None:
        """For the user, if requests are not packed."""
        return None if self.reason is None else f"one sequence per candidate: {self.reason}"


def choose_mode(backbone: Backbone, packing: Literal["auto", "require", "off"] = "auto") -> ProbeResult:
    """Sets `backbone.mode` by the `backbone.packing` setting and says what was found.

    `auto` packs if the probe finds no difference, else falls back to one sequence per candidate; the caller prints
    `note`. `require` raises `BackboneError` instead. Every rank must call it: it runs the model.
    """
    if packing == "off":
        backbone.mode = "separate"
        return ProbeResult("separate", None, "backbone.packing is off")
    difference, reason = _compare(backbone)
    if reason is None:
        backbone.mode = "packed"
        return ProbeResult("packed", difference, None)
    if packing == "require":
        raise BackboneError(
            f"backbone.packing is 'require', but {type(backbone.model).__name__} cannot be packed: {reason}. "
            "Set backbone.packing: auto to run one sequence per candidate, or choose another backbone."
        )
    backbone.mode = "separate"
    return ProbeResult("separate", difference, f"{type(backbone.model).__name__} cannot be packed: {reason}")


def probe_layout(causal: bool) -> RequestLayout:
    """Three small requests: uneven candidates, one without history, and a staircase if the model is causal."""
    histories = [13, 0, 9]
    lengths = [[3, 1, 5], [2, 4], [4, 1]]
    ends = [[5, 13, 0], [0, 0], [9, 2]] if causal else [[n] * len(c) for n, c in zip(histories, lengths, strict=True)]
    return RequestLayout.from_lengths(histories, lengths, ends, causal=causal)


@torch.no_grad()
def _compare(backbone: Backbone) -> tuple[float | None, str | None]:
    """(largest relative difference, reason not to pack).

    Two questions. Do packed and separate outputs agree up to rounding? And do the other candidates' outputs stay put
    when the first ones of the requests change? The second has no rounding (but where experts are shared), so it finds
    in bfloat16 what the first would have to let pass.
    """
    device = next(backbone.model.parameters()).device
    layout = probe_layout(backbone.causal).to(device)
    rng = np.random.default_rng(0)
    # The first ids are often special: padding changes the positions of some encoders.
    ids, changed = rng.integers(backbone.vocab_size // 8, backbone.vocab_size, (2, layout.length))
    first, others = _first_candidates(layout)
    changed = np.where(first, changed, ids)
    rows = [torch.from_numpy(row).to(device) for row in (ids, changed)]
    training = backbone.training
    backbone.eval()
    try:
        backbone.mode = "separate"
        separate = [backbone(row, layout).double() for row in rows]
        try:
            backbone.mode = "packed"
            packed = [backbone(row, layout).double() for row in rows]
        except Exception as error:  # code of any model: whatever it raises is a reason not to pack it
            text = str(error) if isinstance(error, BackboneError) else f"{type(error).__name__}: {error}"
            return None, text
    finally:
        backbone.train(training)
    difference = _difference(packed[0], separate[0])
    leak = _difference(packed[1][others], packed[0][others])
    noise = _difference(separate[1][others], separate[0][others])
    return difference, _judge(difference, leak, noise, TOLERANCES[backbone.model.dtype])


def _judge(difference: float, leak: float, noise: float, tolerance: float) -> str | None:
    if not leak <= tolerance / 1000 + 10 * noise:
        return (
            f"a candidate's output changes by {leak:.2g} with the tokens of another one, as where layers carry "
            "state from token to token"
        )
    if not difference <= tolerance:
        return f"its packed outputs differ from separate ones by {difference:.2g} (allowed {tolerance:g})"
    return None


def _first_candidates(layout: RequestLayout) -> tuple[BoolArray, torch.Tensor]:
    """(bool [L] tokens of the first candidate of each request, the candidates that are not first)."""
    request = layout.host["candidate_request"]
    is_first = np.diff(request, prepend=-1) > 0
    tokens = np.zeros(layout.length, dtype=np.bool_)
    for c in np.flatnonzero(is_first):
        start = layout.host["candidate_start"][c]
        tokens[start : start + layout.host["candidate_length"][c]] = True
    return tokens, torch.from_numpy(np.flatnonzero(~is_first)).to(layout.device)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative difference of a row [C, D]."""
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())
