"""Which weights the backbone starts from, and where pretrained ones are kept: `<prepared>/backbones/<fingerprint>/`.

That folder is in Hugging Face layout. Its `pretrain.json` is written last, so its presence means complete.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
from transformers import LlamaModel, PreTrainedModel

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import joined, open_fs, write_atomic
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import BackboneError
from mtrec_ray.model.backbone import DTYPES, load_model
from mtrec_ray.model.nano import build_nano

NANO = "nano"
NONE = "none"
MARKER = "pretrain.json"


def starting_model(run: Run, prepared: str, manifest: Manifest, dtype: str = "float32") -> PreTrainedModel:
    """The backbone without a head, as training with labels starts from it.

    `nano` comes from its pretraining on this prepared folder, or random where `backbone.pretrained` is false; anything
    else as `load_model` finds it. Raises `BackboneError`.
    """
    if run.backbone.name != NANO:
        return load_model(run.backbone.name, dtype)
    if not run.backbone.pretrained:
        return untrained_nano(run, manifest).to(DTYPES[dtype])  # type: ignore[arg-type]
    folder = backbone_folder(run, prepared)
    if not is_complete(folder):
        raise BackboneError(
            f"backbone 'nano' is not pretrained on this data ({folder} is missing): run `mtrec pretrain`, or set "
            "backbone.pretrained: false to start from random weights."
        )
    return load_model(local_copy(folder), dtype)


def untrained_nano(run: Run, manifest: Manifest) -> LlamaModel:
    """`nano` with random weights by `run.seed`, for the tokenizer of the prepared data and the longest request."""
    part, history = run.backbone, run.history
    # Of any data with these settings: a later run may start from this one (`train.start_from`). It costs nothing.
    longest = history.max_events * history.event_tokens + history.candidate_tokens
    positions = max(manifest.max_position, longest, run.pretrain.sequence_tokens)
    return build_nano(manifest.vocab_size, part.width, part.layers, part.heads, max_positions=positions, seed=run.seed)


def backbone_folder(run: Run, prepared: str) -> str:
    """Where the pretraining of this backbone, with these settings and this seed, on this data, is kept."""
    settings = {
        "backbone": run.backbone.model_dump(mode="json", exclude={"pooling", "packing", "pretrained"}),
        "pretrain": run.pretrain.model_dump(mode="json"),
        "precision": run.engine.precision,
        "seed": run.seed,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return joined(prepared, f"backbones/{digest}")


def is_complete(folder: str) -> bool:
    filesystem, root = open_fs(folder)
    return bool(filesystem.get_file_info(f"{root}/{MARKER}").type == pafs.FileType.File)


def publish(local: Path, folder: str, record: dict[str, object]) -> None:
    """Copies the files of a local folder to `folder`, and last of all writes the marker with `record`."""
    filesystem, root = open_fs(folder)
    for file in sorted(local.iterdir()):
        write_atomic(filesystem, f"{root}/{file.name}", file.read_bytes())
    write_atomic(filesystem, f"{root}/{MARKER}", json.dumps(record, indent=1).encode())


def local_copy(folder: str) -> str:
    """`folder` itself if it is local, else a copy of its files in the machine's temporary folder."""
    filesystem, root = open_fs(folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return root
    target = tempfile.mkdtemp(prefix="mtrec-")
    pafs.copy_files(root, target, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())
    return target
