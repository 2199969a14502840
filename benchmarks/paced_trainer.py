"""The other side of `peers.py`: transformers' Trainer with PEFT's LoRA, one padded sequence per candidate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import SIDES, Pace

from mtrec_ray.config_file import load


class Sequences(torch.utils.data.Dataset[dict[str, Any]]):
    """One sequence per candidate, cut from the prepared requests when it is asked for: a sample of the train split."""

    def __init__(self, prepared: str, count: int) -> None:
        from mtrec_ray.data.streaming.shards import Shards, load_manifest

        self.manifest = load_manifest(prepared)
        shards = Shards(prepared, self.manifest, "train")
        table = shards.rows(np.arange(shards.num_requests))
        self._columns = {
            name: table.column(name).combine_chunks()
            for name in ("history_ids", "history_ends", "candidate_ids", "candidate_ends", "candidate_events", "labels")
        }
        candidates = np.diff(self._columns["candidate_ends"].offsets.to_numpy())
        places = [(request, c) for request, n in enumerate(candidates) for c in range(n)]
        chosen = np.random.default_rng(0).permutation(len(places))[:count]
        self._places = [places[index] for index in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        request, candidate = self._places[index]
        row = {name: column[request].values.to_numpy(zero_copy_only=False) for name, column in self._columns.items()}
        seen, ends = int(row["candidate_events"][candidate]), row["candidate_ends"]
        history = row["history_ids"][: row["history_ends"][seen - 1] if seen else 0]
        own = row["candidate_ids"][ends[candidate - 1] if candidate else 0 : ends[candidate]]
        labels = row["labels"].reshape(len(ends), -1)[candidate]
        return {"input_ids": np.concatenate([history, own]).astype(np.int64), "labels": labels.astype(np.float32)}


def pad(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right padding to the longest of the batch. A decoder's last real token never sees it, so no mask is needed."""
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    ids = [torch.from_numpy(example["input_ids"]) for example in examples]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "last": lengths - 1,
        "labels": torch.from_numpy(np.stack([example["labels"] for example in examples])),
    }


class PeerModel(nn.Module):
    """AutoModel with LoRA, and one linear head per task that reads the last token."""

    def __init__(self, folder: str, tasks: list[Any], weights: dict[str, float], adapter: Any) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        super().__init__()
        config = LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules="all-linear")
        self.backbone = get_peft_model(AutoModel.from_pretrained(folder), config)
        self.heads = nn.ModuleList(nn.Linear(self.backbone.config.hidden_size, 1) for _ in tasks)
        self.tasks, self.weights = tasks, weights

    def forward(self, input_ids: Tensor, last: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        z = hidden[torch.arange(len(last)), last]
        loss = z.new_zeros(())
        for task, head, label in zip(self.tasks, self.heads, labels.T, strict=True):
            observed = ~label.isnan()
            if observed.any():
                loss = loss + self.weights[task.name] * task_loss(task, head(z[observed])[:, 0], label[observed])
        return {"loss": loss}


def task_loss(task: Any, logits: Tensor, labels: Tensor) -> Tensor:
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.mse_loss(logits, (labels - task.mean) / task.std)


def train_peer(folder: str, port: int) -> None:
    """Trainer over the sample of candidates, once."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    side = json.loads(Path(folder, "side.json").read_text())
    torch.set_num_threads(side["threads"])
    run = load(f"{folder}/run.yaml")
    data = Sequences(side["prepared"], side["sequences"])
    pace = Pace(SIDES[1], port, side["seconds"])
    weights = {name: task.weight for name, task in run.tasks.items()}
    model = PeerModel(f"{folder}/backbone", data.manifest.tasks, weights, run.adapter)
    taken: list[Tensor] = []

    class Paces(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.ready()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ids = taken.pop()
            control.should_training_stop |= not pace.step(ids.shape[0], ids.numel())

    class Counting(Trainer):
        def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *more: Any, **named: Any) -> Tensor:
            taken.append(inputs["input_ids"])
            loss: Tensor = super().training_step(model, inputs, *more, **named)
            return loss

    settings = TrainingArguments(
        output_dir=f"{folder}/trainer",
        per_device_train_batch_size=side["peer_batch"],
        train_sampling_strategy="group_by_length",
        num_train_epochs=1,
        learning_rate=run.train.learning_rate.adapters,
        logging_steps=run.train.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    for _ in range(2):  # warms up, as our first turn does
        model(**pad([data[index] for index in range(4)]))["loss"].backward()
    Counting(model, settings, data_collator=pad, train_dataset=data, callbacks=[Paces()]).train()
    pace.report(done=True)
