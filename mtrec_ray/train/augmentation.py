"""The changes to train requests that a run asks for, with what they need of the prepared folder."""

from transformers import AutoTokenizer

from mtrec_ray.config import Augment, Run
from mtrec_ray.data.filesystem import joined
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.augment.item_text import ItemTexts
from mtrec_ray.data.streaming.augment.tokens import TokenNoise
from mtrec_ray.train.pretrained import NONE, local_copy


def open_augmenter(run: Run, prepared: str, manifest: Manifest) -> Augmenter | None:
    """None where all of `augment` is off. Texts and tokens are left alone where no language model reads them."""
    settings = run.augment
    if settings == Augment():
        return None
    reads = manifest.vocab_size > 0 and run.backbone.name != NONE
    texts, noise = None, None
    if reads and (settings.item_text is not None or settings.token_noise):
        tokenizer = AutoTokenizer.from_pretrained(local_copy(joined(prepared, "tokenizer")))
        if settings.item_text is not None:
            texts = ItemTexts.open(run, prepared, tokenizer)
        if settings.token_noise:
            noise = TokenNoise(settings.token_noise, manifest.vocab_size, tokenizer.all_special_ids)
    return Augmenter(settings, run.seed, texts, noise, ordered=reads, domains=tuple(manifest.domains))
