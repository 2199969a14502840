"""The shared language model: token ids of a packed row in, one vector per candidate out."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft.utils.integrations import gather_params_ctx
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from mtrec_ray.errors import BackboneError
from mtrec_ray.model import attention
from mtrec_ray.model.dropout import DropoutContext, DropoutKey
from mtrec_ray.model.layout import RequestLayout, SeparateBatch

Mode = Literal["packed", "separate"]
Pooling = Literal["last", "mean"]
_UNUSED = "pooler"
_ADDED = ("lora_", "ia3_", "ranknum", "adapter_")
"""How parts of a name open that adapters have put into the model: PEFT's, and ours."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Backbone(nn.Module):
    """A Hugging Face decoder or encoder without a head, run on packed rows.

    Starts frozen and without the model's own dropouts (they draw from a random state). `mode`: `packed` runs a row as
    it is, with request attention; `separate` runs one padded sequence per candidate with the model's own attention: the
    reference, and the fall-back for models that cannot be packed. Change it only between steps: under activation
    checkpointing the backward pass computes with the mode it finds.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pooling: Literal["auto"] | Pooling = "auto",
        mode: Mode = "packed",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = model.config.get_text_config()
        self.model = model
        self.hidden_size: int = config.hidden_size
        self.vocab_size = _vocab_size(model)
        self.causal = is_causal(config)
        self.pooling: Pooling = ("last" if self.causal else "mean") if pooling == "auto" else pooling
        self.dropout = DropoutContext()
        self._position_offset = _position_offset(model)
        limit = getattr(config, "max_position_embeddings", None)
        self.max_positions: int | None = limit and limit - self._position_offset
        self._own_attention = self._separate_attention = config._attn_implementation
        _remove_unused(model)
        self._checksum = weights_checksum(model)
        _disable_dropout(model)
        model.requires_grad_(False)
        if checkpointing:
            self.enable_checkpointing()
        self.mode = mode

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        wanted = attention.NAME if mode == "packed" else self._separate_attention
        if wanted != self.model.config.get_text_config()._attn_implementation:
            if not self.model._can_set_attn_implementation():
                raise attention.UnsupportedAttentionError("it does not use the attention interface of transformers")
            self.model.set_attn_implementation(wanted)
        self._mode: Mode = mode

    def enable_checkpointing(self, contexts: Callable[[], tuple[Any, Any]] | None = None) -> None:
        """Saves only the inputs of each layer in training and computes the rest again in the backward pass.

        `contexts`: what forward pass and recomputation are put in, by default that of the adapters' dropout.
        """
        self.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={
                "use_reentrant": False,
                "preserve_rng_state": False,  # nothing in the model draws from it
                "context_fn": contexts or self.dropout.checkpoint_contexts,
            }
        )

    def attend_to_prefixes(self) -> None:
        """Has attention see the keys and values that a layer is handed as `request_prefix` (`model.adapters.prefix`).

        Raises `UnsupportedAttentionError` where separate sequences would be computed without them.
        """
        if self._own_attention != "sdpa":
            raise attention.UnsupportedAttentionError(f"its own attention is computed by '{self._own_attention}'")
        self._separate_attention = attention.PREFIXED
        self.mode = self._mode

    def checksum(self) -> str:
        """SHA-256 of the weights the model was loaded with, adapters excluded."""
        return self._checksum

    def forward(
        self,
        ids: torch.Tensor,
        layout: RequestLayout,
        *,
        key: DropoutKey | None = None,
        token_uids: torch.Tensor | None = None,
        history: bool = False,
    ) -> torch.Tensor:
        """ids int64 [L] -> [C, hidden_size], in the model's precision; `layout` on the device of `ids`.

        With `history` [C, 2 hidden_size]: behind each candidate's own state the one at the last history token that it
        sees, which knows nothing of the candidate; of any value where it sees none.

        `key` and `token_uids` (int64 [L]) are needed in training if an adapter has dropout. Without candidates the
        result is empty, but its gradient is defined, and zero, for every trained weight: all workers run the same
        layers. Raises `BackboneError` if an id or a position is beyond the model.
        """
        if layout.causal != self.causal:
            raise ValueError(f"a layout with causal={layout.causal} for a backbone with causal={self.causal}")
        if layout.num_candidates == 0:
            return self._forward_nothing(ids.device, key, history)
        largest_id = int(ids.max()) if ids.device.type == "cpu" else None
        self.check_capacity(largest_id, layout.largest_position)
        if self._mode == "packed":
            return self._forward_packed(ids, layout, key, token_uids, history)
        return self._forward_separate(ids, layout, key, token_uids, history)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int64 [...] -> [..., hidden_size]: what the model reads in place of the tokens."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def check_capacity(self, largest_id: int | None, largest_position: int) -> None:
        """Raises `BackboneError` if the model has no embedding for the id, or was not made for the position."""
        if largest_id is not None and largest_id >= self.vocab_size:
            raise BackboneError(
                f"token id {largest_id} is beyond the backbone's vocabulary of {self.vocab_size}: the data was "
                "prepared with another tokenizer. Run `mtrec prepare` again with this backbone."
            )
        if self.max_positions is not None and largest_position >= self.max_positions:
            raise BackboneError(
                f"a candidate with its history has {largest_position + 1} tokens, the backbone reads at most "
                f"{self.max_positions}. Lower history.max_events, history.event_tokens or history.candidate_tokens."
            )

    def _forward_packed(
        self, ids: torch.Tensor, layout: RequestLayout, key: DropoutKey | None, uids: torch.Tensor | None, history: bool
    ) -> torch.Tensor:
        with self.dropout.use(key, None if uids is None else uids[None]):
            hidden = self.read_packed(ids, layout)
        return self.pool_packed(hidden, layout, history)

    def read_packed(self, ids: torch.Tensor, layout: RequestLayout) -> torch.Tensor:
        """Last hidden states of a packed row [L, hidden_size]."""
        positions = layout.positions() + self._position_offset
        outputs = self.model(
            input_ids=ids[None], position_ids=positions[None], request_layout=layout, **self._no_cache()
        )
        hidden: torch.Tensor = outputs.last_hidden_state[0]
        return hidden

    def pool_packed(self, hidden: torch.Tensor, layout: RequestLayout, history: bool = False) -> torch.Tensor:
        """Hidden states [L, hidden_size] -> [C, hidden_size], or with `history` [C, 2 hidden_size]."""
        own = self._pool(hidden, layout.candidate_start, layout.candidate_length, layout)
        if not history:
            return own
        last = layout.history_start[layout.candidate_request] + (layout.candidate_end - 1).clamp(min=0)
        return torch.cat([own, hidden[last]], dim=1)

    def _forward_separate(
        self, ids: torch.Tensor, layout: RequestLayout, key: DropoutKey | None, uids: torch.Tensor | None, history: bool
    ) -> torch.Tensor:
        batch = layout.separate()
        self._check_window(layout)
        # A causal model does not see what is on the right; it needs no mask and numbers positions by itself.
        mask = None if self.causal else self._encoder_mask(batch)
        with self.dropout.use(key, None if uids is None else uids[batch.tokens]):
            hidden = self.model(input_ids=ids[batch.tokens], attention_mask=mask, **self._no_cache()).last_hidden_state
        start = torch.arange(len(batch.end), device=ids.device) * hidden.shape[1]
        hidden = hidden.flatten(0, 1)
        own = self._pool(hidden, start + batch.end, batch.length - batch.end, layout)
        return torch.cat([own, hidden[start + (batch.end - 1).clamp(min=0)]], dim=1) if history else own

    def _forward_nothing(self, device: torch.device, key: DropoutKey | None, history: bool) -> torch.Tensor:
        """Runs one token and selects none of its output."""
        one = torch.zeros(1, dtype=torch.int64, device=device)
        layout = RequestLayout.from_lengths([0], [[1]], [[0]], causal=self.causal).to(device)
        forward = self._forward_packed if self._mode == "packed" else self._forward_separate
        return forward(one, layout, key, one, history)[:0]

    def _pool(
        self, hidden: torch.Tensor, first: torch.Tensor, length: torch.Tensor, layout: RequestLayout
    ) -> torch.Tensor:
        """Hidden states [tokens, D] -> [C, D], of the candidates' own tokens [first, first + length)."""
        if self.pooling == "last":
            return hidden[first + length - 1]
        # Gathered with padding: index_add_ would sum in an order that changes from run to run on a GPU.
        steps = torch.arange(int(layout.host["candidate_length"].max()), device=hidden.device)
        present = steps < length[:, None]
        own = hidden[torch.where(present, first[:, None] + steps, 0)]
        return (own * present[..., None]).sum(1) / length[:, None].to(hidden.dtype)

    def _check_window(self, layout: RequestLayout) -> None:
        """A mask of ours takes the place of the windowed ones that an encoder would build."""
        window = getattr(self.model.config, "sliding_window", None)
        if not self.causal and window is not None and layout.largest_position > window:
            raise BackboneError(
                f"{type(self.model).__name__} attends within {window} tokens, which one sequence per candidate "
                f"(backbone.packing: off) cannot do for {layout.largest_position + 1}. Set backbone.packing: require."
            )

    def _encoder_mask(self, batch: SeparateBatch) -> torch.Tensor:
        """[C, 1, T, T]: history sees history, the candidate sees all; as the model's own attention wants it."""
        steps = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        history = steps < batch.end[:, None]
        allowed = history[:, None, :] | (~history[:, :, None] & batch.present[:, None, :])
        allowed = (allowed | torch.eye(len(steps), dtype=torch.bool, device=steps.device))[:, None]
        if self._own_attention == "sdpa":
            return allowed
        dtype = self.model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=steps.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self.causal else {}


def load_model(name: str, dtype: str = "float32") -> PreTrainedModel:
    """The model called `name` on the hub, or in the folder `name`, without its head, with the weights in `dtype`.

    Raises `BackboneError` if there is no such folder or it holds no model or only a part of one, if the hub cannot be
    reached, and for encoder-decoder models.
    """
    config = load_config(name)
    if config.is_encoder_decoder:
        raise BackboneError(
            f"backbone.name: '{name}' is an encoder-decoder ({config.model_type}); choose a decoder or an encoder"
        )
    try:
        model: PreTrainedModel
        model, report = AutoModel.from_pretrained(
            locate(name), config=config, dtype=DTYPES[dtype], output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone.name: the weights of '{name}' cannot be loaded: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise BackboneError(
            f"backbone.name: '{name}' lacks {len(missing)} weights of a {type(model).__name__} "
            f"({', '.join(missing[:3])}); they would be random, and others on each worker. Give a whole model."
        )
    return model


def load_config(name: str) -> PreTrainedConfig:
    """The config of a model; see `load_model`."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
            raise BackboneError(
                f"backbone.name: the folder '{name}' has no config.json (it holds {found}); "
                "give a folder written by save_pretrained or `hf download`"
            )
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise BackboneError(f"backbone.name: there is no folder '{name}'")
    try:
        return AutoConfig.from_pretrained(locate(name))
    except OSError as error:
        raise BackboneError(
            f"backbone.name: '{name}' is neither a folder nor could it be fetched from the Hugging Face hub "
            f"({str(error).splitlines()[0]}). Without a network, run `hf download {name} --local-dir DIR` on a "
            "machine that has one and set backbone.name: DIR."
        ) from error
    except ValueError as error:
        raise BackboneError(
            f"backbone.name: transformers {transformers.__version__} does not know the model in '{name}': {error}"
        ) from error


def locate(name: str) -> str:
    """A folder as every process understands it, whatever its current directory; any other name as it is."""
    folder = os.path.expanduser(name)
    built_in = name in ("none", "nano")
    return os.path.realpath(folder) if os.path.isdir(folder) and not built_in else name


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a token sees only what is on its left. Models that exist in both forms say so in `is_decoder`."""
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(config, "is_decoder", False))
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return getattr(config, "use_bidirectional_attention", None) is not True
    return bool(getattr(config, "is_causal", getattr(config, "is_decoder", True)))


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all weights but what adapters added: no adapter changes it.

    Weights that ZeRO-3 has split over the ranks are put together one by one, so then every rank must call it.
    """
    digest = hashlib.sha256()
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict(keep_vars=True).items()
        if not is_added(name)
    }
    for name in sorted(state):
        with gather_params_ctx(state[name], modifier_rank=None):
            weight = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_added(name: str) -> bool:
    """Whether the weight or buffer of that name was put into the model by an adapter (`model.adapters`)."""
    return any(part.startswith(_ADDED) for part in name.split("."))


def _vocab_size(model: PreTrainedModel) -> int:
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise BackboneError(f"{type(model).__name__} reads no token ids; choose a text model")
    return embedding.num_embeddings


def _position_offset(model: PreTrainedModel) -> int:
    """RoBERTa and its kin number positions from padding_idx + 1."""
    embeddings = getattr(model, "embeddings", None)
    if embeddings is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def _remove_unused(model: PreTrainedModel) -> None:
    """A pooler after the last layer would get adapters, or be trained, without ever getting a gradient.

    Weights that were pretrained for masked tokens have none: it is random, and must not count in the checksum.
    """
    if isinstance(getattr(model, _UNUSED, None), nn.Module):
        model._modules[_UNUSED] = None


def _disable_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)
