"""Self-supervised training of a backbone on the text of the train period, before any label is seen.

Next token for decoders, masked tokens for encoders (Devlin et al. 2019: 15 %, of which 80 % masked, 10 % random, 10 %
kept). Documents are shuffled, joined with a separator and cut into sequences of one length, so nothing is padded. All
weights are trained; the loss is a sum over tokens divided by the count over all ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.config import Pretrain
from mtrec_ray.data.streaming.order import permutation
from mtrec_ray.train.schedule import lr_scale

HELD_OUT = 0.05
"""Share of the documents on which the loss is measured and not trained."""
_WARMUP = 0.05
_MOST_LOGITS = 1 << 26
"""Numbers in one micro-batch's logits; a large vocabulary takes smaller micro-batches."""
_MASKED, _RANDOM, _KEPT = 0.15, 0.1, 0.1
_IGNORED = -100

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
ModelFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is predicted. Without a `mask_id` the next token."""

    vocab_size: int
    mask_id: int | None = None

    def examples(self, sequences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """int64 [B, T] -> inputs [B, T] and targets [B, T], -100 where nothing is predicted."""
        if self.mask_id is None:
            ends = torch.full_like(sequences[:, :1], _IGNORED)
            return sequences, torch.cat([sequences[:, 1:], ends], dim=1)
        draws = torch.rand(sequences.shape, generator=generator) / _MASKED
        chosen = draws < 1
        inputs = sequences.masked_fill(draws < 1 - _RANDOM - _KEPT, self.mask_id)
        other = torch.randint(self.vocab_size, sequences.shape, generator=generator)
        inputs = torch.where((draws >= 1 - _RANDOM - _KEPT) & (draws < 1 - _KEPT), other, inputs)
        return inputs, sequences.masked_fill(~chosen, _IGNORED)


@dataclass(frozen=True)
class Corpus:
    """Documents as one array of token ids."""

    ids: IntArray
    ends: IntArray
    """[D] end of each document in `ids`."""
    separator: int

    def split(self, seed: int) -> tuple["Corpus", "Corpus"]:
        """Training documents and held-out ones; the latter at least one, and none if there is but one."""
        order = permutation(len(self.ends), seed)
        held = max(1, round(HELD_OUT * len(order))) if len(order) > 1 else 0
        return self.select(np.sort(order[held:])), self.select(np.sort(order[:held]))

    def select(self, documents: IntArray) -> "Corpus":
        starts = np.insert(self.ends, 0, 0)[documents]
        lengths = self.ends[documents] - starts
        return Corpus(self.ids[_ranges(starts, lengths)], np.cumsum(lengths), self.separator)

    def sequences(self, length: int, seed: int | None = None) -> IntArray:
        """int64 [S, length]: the documents, in an order by `seed`, each followed by the separator, cut to length.

        What is left over at the end is dropped, unless it is all there is: then it is one shorter sequence.
        """
        corpus = self if seed is None else self.select(permutation(len(self.ends), seed))
        joined = np.insert(corpus.ids, corpus.ends, corpus.separator)
        if len(joined) < length:
            return joined[None, :].astype(np.int64)[: len(joined)]
        return joined[: len(joined) // length * length].reshape(-1, length).astype(np.int64)


@dataclass(frozen=True)
class PretrainStep:
    """One optimizer step; `loss` is the mean over predicted tokens of all ranks."""

    step: int
    loss: float
    tokens: int


class Pretrainer:
    """One rank; with several a process group must exist. `model`: int64 [B, T] -> `.logits` [B, T, V]."""

    def __init__(
        self, model: nn.Module, objective: Objective, settings: Pretrain, seed: int, device: torch.device, bf16: bool
    ) -> None:
        self.model = model.to(device)
        self.objective = objective
        self.settings = settings
        self.seed = seed
        self.device = device
        self.bf16 = bf16
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._optimizer = _optimizer(model, settings.learning_rate)

    def num_steps(self, corpus: Corpus) -> int:
        """Optimizer steps of the whole training."""
        steps = max(1, round(self.settings.epochs * self._steps_per_epoch(corpus)))
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def train(self, corpus: Corpus) -> Iterator[PretrainStep]:
        """All steps; each epoch joins the documents in another order."""
        num_steps, per_epoch = self.num_steps(corpus), self._steps_per_epoch(corpus)
        self.model.train()
        epoch = -1
        sequences: IntArray = np.zeros((0, 1), dtype=np.int64)
        for step in range(num_steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                sequences = corpus.sequences(self.settings.sequence_tokens, seed=self.seed + 1 + epoch)
            first = step % per_epoch * self._batch
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                torch.manual_seed((self.seed * 1_000_003 + step) * self.world_size + self.rank)  # the model's dropouts
                result = self._step(step, num_steps, torch.from_numpy(sequences[first : first + self._batch]))
            yield result

    @torch.no_grad()
    def loss(self, corpus: Corpus) -> float:
        """Mean loss per predicted token; the same masks every time. NaN for an empty corpus."""
        sequences = torch.from_numpy(corpus.sequences(self.settings.sequence_tokens))
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for inputs, targets in self._micro_batches(*self.objective.examples(sequences, self._generator(0))):
            total += torch.stack([self._loss_sum(inputs, targets).double().cpu(), (targets != _IGNORED).sum()])
        total = self._sum(total)
        return float(total[0] / total[1])

    @property
    def _batch(self) -> int:
        return max(1, self.settings.batch_tokens // self.settings.sequence_tokens)

    def _steps_per_epoch(self, corpus: Corpus) -> int:
        tokens = len(corpus.ids) + len(corpus.ends)
        return -(-max(1, tokens // self.settings.sequence_tokens) // self._batch)

    def _step(self, step: int, num_steps: int, sequences: Tensor) -> PretrainStep:
        inputs, targets = self.objective.examples(sequences, self._generator(step + 1))
        count = int((targets != _IGNORED).sum())  # every rank has the whole batch's targets
        total = torch.zeros((), dtype=torch.float64)
        for micro_inputs, micro_targets in self._micro_batches(inputs, targets):
            loss = self._loss_sum(micro_inputs, micro_targets)
            (loss / max(1, count)).backward()
            total += loss.detach().double().cpu()
        self._sum_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * lr_scale(step, num_steps, _WARMUP, "cosine")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return PretrainStep(step + 1, float(self._sum(total)) / max(1, count), inputs.numel())

    def _micro_batches(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the sequences, a bounded number at a time."""
        inputs, targets = inputs[self.rank :: self.world_size], targets[self.rank :: self.world_size]
        size = max(1, _MOST_LOGITS // (inputs.shape[1] * self.objective.vocab_size)) if inputs.numel() else 1
        for first in range(0, len(inputs), size):
            chosen = slice(first, first + size)
            yield inputs[chosen].to(self.device), targets[chosen].to(self.device)

    def _loss_sum(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(inputs).logits
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
        )

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def _sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        if self.world_size > 1:
            dist.all_reduce(values)
        return values.cpu()

    def _sum_gradients(self) -> None:
        """One collective over all gradients; a rank without a sequence in this step adds zeros."""
        if self.world_size == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = summed.view_as(parameter)


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW; matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.95))


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """The concatenated ranges [start, start + length)."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within
