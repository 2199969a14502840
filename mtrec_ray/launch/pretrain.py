"""`mtrec pretrain`: self-supervised training of the backbone on the prepared documents, as a Ray Train job."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import joined
from mtrec_ray.errors import ConfigError
from mtrec_ray.launch.jobs import absolute, located, run_workers, use_threads
from mtrec_ray.launch.relay import Relay, relayed
from mtrec_ray.launch.session import ray_session
from mtrec_ray.progress import Bar, say
from mtrec_ray.train import pretrained
from mtrec_ray.train.start import Start

_LOG_EVERY = 10


def pretrain(run: Run) -> str:
    """Trains the backbone on the train period's text and gives the folder of its weights, in Hugging Face layout.

    Reuses what an earlier call with the same settings on the same data left. Raises `UserError`.
    """
    from mtrec_ray.data.prepare import prepare

    if run.backbone.name == pretrained.NONE:
        raise ConfigError("backbone.name is 'none': there is no language model to pretrain. Set backbone.name: nano.")
    run = located(run)
    start = run.train.start_from
    if start is not None and Start.read(start).run.backbone.name != pretrained.NONE:
        raise ConfigError(
            "train.start_from: the run that starts from another one has its language model, and reads none that is "
            "pretrained now. Pretrain without it (--set train.start_from=null)."
        )
    with ray_session(run.cluster):
        prepared = absolute(prepare(run).path)
        folder = pretrained.backbone_folder(run, prepared)
        if not pretrained.is_complete(folder):
            pretrain_prepared(run, prepared, folder)
        return folder


def pretrain_prepared(run: Run, prepared: str, folder: str) -> dict[str, Any]:
    """The job itself; leaves the weights in `folder` and gives `loss_before`, `loss_after`, `losses`."""
    with relayed() as relay, tempfile.TemporaryDirectory() as scratch:
        # Nothing is checkpointed, so Ray's own files need no storage that the nodes share.
        record: dict[str, Any] = run_workers(
            _pretrain_worker,
            {"run": run, "prepared": prepared, "folder": folder},
            run.cluster,
            relay,
            name="pretrain",
            storage=scratch,
        )
    say(f"pretrain: loss per held-out token {record['loss_before']:.3f} -> {record['loss_after']:.3f}")
    return record


def _pretrain_worker(relay: Relay, run: Run, prepared: str, folder: str) -> dict[str, Any]:
    """One rank; rank 0 shows progress and publishes the weights."""
    import ray.train
    import ray.train.torch
    from transformers import AutoTokenizer

    from mtrec_ray.data.streaming.shards import load_manifest
    from mtrec_ray.train.language_model import language_model, load_corpus, objective, separator
    from mtrec_ray.train.pretraining import Pretrainer

    use_threads(run.cluster)
    leads = ray.train.get_context().get_world_rank() == 0
    manifest = load_manifest(prepared)
    tokenizer = AutoTokenizer.from_pretrained(pretrained.local_copy(joined(prepared, "tokenizer")))
    model = language_model(run, manifest)
    device, bf16 = ray.train.torch.get_device(), run.engine.precision == "bf16"
    trainer = Pretrainer(model, objective(model, tokenizer), run.pretrain, run.seed, device, bf16)
    train, held_out = load_corpus(prepared, manifest, separator(tokenizer)).split(run.seed)
    before = trainer.loss(held_out)
    losses = []
    with _bar(relay, trainer.num_steps(train), leads) as bar:
        for step in trainer.train(train):
            if bar is not None:
                bar.advance()
            if bar is not None and step.step % _LOG_EVERY == 0:
                bar.note(f"loss {step.loss:.3f}")
                losses.append({"step": step.step, "loss": step.loss})
    record = {"loss_before": before, "loss_after": trainer.loss(held_out), "losses": losses}
    if leads:
        with tempfile.TemporaryDirectory() as local:
            model.save_pretrained(local)
            tokenizer.save_pretrained(local)
            pretrained.publish(Path(local), folder, record)
    return record


def _bar(relay: Relay, steps: int, leads: bool) -> AbstractContextManager[Bar | None]:
    return relay.track("pretrain", steps, "steps") if leads else nullcontext()
