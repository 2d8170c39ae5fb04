"""The trained model as a checkpoint folder in the Hugging Face BitNet layout, ternary codes packed
four to a byte.

Packing ("autobitlinear", offline): byte[r, k] = sum_i (T[i * R + r, k] + 1) << 2i with R =
out_features / 4, so one byte holds four rows that lie R apart; `weight_scale` [1] = s is
multiplied. Embedding and norms are bfloat16, and so is s, since the matrix products of the training
saw s * T in bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from qh_runtime.training.config import ModelConfig
from qh_runtime.training.decoder import BitNetDecoder
from qh_runtime.training.ternary import BitLinear, absmean_scale, ternary_codes
from qh_runtime.training.vocabulary import CHAT_TEMPLATE, EOS_ID, SPECIAL_TOKENS


def pack_codes(codes: Tensor) -> Tensor:
    """Return ternary codes (out_features, in_features) as uint8 (out_features / 4, in_features)."""
    if codes.shape[0] % 4:
        raise ValueError(f"out_features must be a multiple of 4, found {codes.shape[0]}")
    quarters = (codes.to(torch.int64) + 1).view(4, codes.shape[0] // 4, codes.shape[1])
    shifts = torch.tensor([0, 2, 4, 6]).view(4, 1, 1)
    return (quarters << shifts).sum(0).to(torch.uint8)


def checkpoint_tensors(model: BitNetDecoder) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors by name."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if value.dim() == 2 and name != "embed_tokens.weight":
            tensors[f"model.{name}"] = pack_codes(ternary_codes(value))
            tensors[f"model.{name}_scale"] = absmean_scale(value).reshape(1).to(torch.bfloat16)
        else:
            tensors[f"model.{name}"] = value.to(torch.bfloat16).contiguous()
    return tensors


class ExportedLinear(nn.Module):
    """A ternary layer as readers of the checkpoint compute it: product with the codes first,
    then the scale.
    """

    def __init__(self, master: Tensor) -> None:
        super().__init__()
        self.codes = nn.Buffer(ternary_codes(master))
        self.scale = nn.Buffer(absmean_scale(master).to(torch.bfloat16).float())

    def forward(self, x: Tensor) -> Tensor:
        """Return (x @ T^T) * s, shape (..., out_features); x is quantized already."""
        return nn.functional.linear(x, self.codes) * self.scale


@torch.no_grad()
def as_exported(model: BitNetDecoder) -> BitNetDecoder:
    """Return a float32 copy that computes with exactly the values of the checkpoint."""
    copy = BitNetDecoder(model.config, torch.float32)
    copy.load_state_dict({n: v.detach().float().clone() for n, v in model.state_dict().items()})
    for name, module in list(copy.named_modules()):
        if isinstance(module, BitLinear):
            copy.set_submodule(name, ExportedLinear(module.weight))
    for parameter in copy.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return copy.requires_grad_(False)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of config.json."""
    sizes = config.as_dict()
    theta = sizes.pop("rope_theta")
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **sizes,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": EOS_ID,
        "dtype": "bfloat16",
        "hidden_act": "relu2",
        "initializer_range": 0.02,
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": ["lm_head"],
        },
    }


def tokenizer_config_json(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    added = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL_TOKENS)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }


def export(model: BitNetDecoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint without its card into `folder`, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(checkpoint_tensors(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # The writer leaves it readable by its owner alone.
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n", encoding="utf-8")
    generation = {
        "bos_token_id": 0,
        "eos_token_id": [EOS_ID],
        "pad_token_id": EOS_ID,
        "do_sample": True,
        # Chosen by reading samples: higher values break names and places within a story.
        "temperature": 0.6,
        "top_p": 0.9,
        "max_new_tokens": 256,
    }
    for name, content in (
        ("config.json", config_json(model.config)),
        ("tokenizer_config.json", tokenizer_config_json(model.config)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
