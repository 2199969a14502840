"""The tokenizer of a run: trained on the train period for `nano`, else the backbone's own."""

from collections.abc import Collection
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.fitting.texts import tokenizer_texts
from mtrec_ray.errors import BackboneError, ConfigError
from mtrec_ray.model.backbone import is_causal, load_config
from mtrec_ray.model.nano import train_tokenizer


def make_tokenizer(
    run: Run,
    tables: Tables,
    event_items: Collection[str],
    words: Collection[str],
    queries: Collection[str] = (),
    versions: Collection[int] = (),
) -> PreTrainedTokenizerBase | None:
    """None with `backbone: none`.

    Args:
        event_items: items with an event in the train period, whose texts `nano` may learn from.
        words: feedback words of the train period.
        queries: of the train rows.
        versions: rows of an item table with versions that these events have, in place of the latest of their items.

    Raises:
        BackboneError: no tokenizer at `backbone.name`, or no network to fetch it.
    """
    name = run.backbone.name
    if name == "none":
        return None
    if name == "nano":
        texts = tables.item_texts(sorted(set(event_items)))
        if tables.items is not None and tables.items.versions is not None:
            texts = [tables.items.text[row] for row in sorted(set(versions))]
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(
            tokenizer_texts([*texts, *sorted(set(queries))], sorted(set(words) - {""})), run.backbone.vocab_size
        )
    else:
        tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = 10**9  # texts are cut by history.event_tokens and candidate_tokens, and counted
    return tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name or path. Raises `BackboneError`."""
    load_config(name)
    path = Path(name).expanduser()
    try:
        return AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"backbone.name: no tokenizer can be loaded from '{name}' ({str(error).splitlines()[0]}). It must lie "
            "beside the weights, as `tokenizer.json`."
        ) from error


def has_shared_end(run: Run) -> bool:
    """Whether all candidates of a request share one history end: with `history.layout: auto`, for encoders.

    Raises:
        ConfigError: a staircase asked for an encoder, which would see later events through the history's states.
        BackboneError: a backbone whose config cannot be read.
    """
    name, layout = run.backbone.name, run.history.layout
    if layout == "shared_end":
        return True
    encoder = name not in ("none", "nano") and not is_causal(load_config(name))
    if encoder and layout == "staircase":
        raise ConfigError(
            f"history.layout: staircase needs a decoder, and '{name}' reads its history in both directions, so that "
            "earlier candidates would see later events; use shared_end or auto."
        )
    return encoder
