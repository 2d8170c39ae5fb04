"""Seeded checkpoints below 1 MB, written and read back by transformers: the architectures' oracle.

Weights are drawn much larger than an initializer would, so that attention is far from uniform,
every norm and bias matters, and a swapped tensor or a wrong rotation shows in the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import pack_weights

from qh_runtime.reference.decoder import Tape
from qh_runtime.reference.ops import QuantizedActivations
from qh_runtime.reference.weights import CodedMatrix, DenseMatrix, Matrix, ReferenceWeights

__all__ = [
    "BITNET_ENCODINGS",
    "CASES",
    "TinyCase",
    "TinyCheckpoints",
    "load_oracle",
    "memory_oracle",
    "oracle_logits",
    "oracle_tape",
    "reference_weights",
]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


@dataclass(frozen=True)
class TinyCase:
    """A checkpoint to write: config of a transformers class, and the seed of its weights."""

    name: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 20261123


# Sizes are deliberately not multiples of tiles (16), activation groups (32) or paddings (128).
_SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 56,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _case(name: str, model_type: str, **changes: Any) -> TinyCase:
    return TinyCase(name, model_type, {**_SIZES, **changes})


CASES: dict[str, TinyCase] = {
    case.name: case
    for case in (
        _case("llama", "llama"),
        _case("llama-tied", "llama", tie_word_embeddings=True),
        _case("llama-mha", "llama", num_key_value_heads=4),
        _case("llama-mqa", "llama", num_key_value_heads=1),
        _case("llama-biases", "llama", attention_bias=True, mlp_bias=True),
        _case("llama-head-dim", "llama", head_dim=24),
        _case("llama-llama3-rope", "llama", rope_parameters=_LLAMA3_ROPE, head_dim=32),
        _case(
            "llama-linear-rope",
            "llama",
            rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5},
        ),
        _case("mistral", "mistral", sliding_window=None, head_dim=20),
        _case("mistral-window", "mistral", sliding_window=7),
        _case("qwen2", "qwen2", tie_word_embeddings=True),
        _case(
            "qwen2-window",
            "qwen2",
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
        ),
        _case("qwen3", "qwen3", head_dim=32, rms_norm_eps=1e-6, tie_word_embeddings=True),
        _case("qwen3-biases", "qwen3", head_dim=16, attention_bias=True),
        _case(
            "qwen3-window",
            "qwen3",
            head_dim=16,
            use_sliding_window=True,
            sliding_window=9,
            max_window_layers=0,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
        _case("bitnet", "bitnet", tie_word_embeddings=True),
        _case("bitnet-untied", "bitnet", num_key_value_heads=4),
        _case(
            "bitnet-silu",
            "bitnet",
            num_key_value_heads=4,
            hidden_act="silu",
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        # Falcon3-1.58 and HF1BitLLM: Llama's architecture with ternary linear layers.
        _case("llama-ternary", "llama", head_dim=16),
    )
}

# By letter, the quantization_config of the encodings that published checkpoints use.
BITNET_ENCODINGS: dict[str, dict[str, Any]] = {
    "A": {"quant_method": "bitnet"},
    "B": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    },
    "C": {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    },
}
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TinyCheckpoints:
    """Writes each checkpoint once into a folder of the test session."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def first_bitnet(self) -> tuple[Path, Path]:
        """A checkpoint as the first BitNet release has it, and its equal for transformers.

        That release is no class of transformers; its mathematics is that of BitNetForCausalLM with
        SiLU and masters, under other names.
        """
        theirs, ours = self.folder("bitnet-silu", "C"), self._root / "first-bitnet"
        if not ours.exists():
            ours.mkdir()
            config = json.loads((theirs / "config.json").read_text())
            del config["quantization_config"]
            config |= {"model_type": "llama", "architectures": ["BitnetForCausalLM"]}
            config |= {"weight_bits": 1, "input_bits": 8}
            (ours / "config.json").write_text(json.dumps(config))
            tensors = {
                name.replace("attn_sub_norm", "inner_attn_ln").replace(
                    "ffn_sub_norm", "ffn_layernorm"
                ): tensor
                for name, tensor in load_file(theirs / "model.safetensors").items()
            }
            save_file(tensors, ours / "model.safetensors", metadata={"format": "pt"})
        return ours, theirs

    def folder(self, name: str, encoding: str = "") -> Path:
        """The checkpoint folder of a case; encoding A, B or C for ternary linear layers."""
        folder = self._root / f"{name}{encoding}"
        if not folder.exists():
            case = CASES[name]
            _write(case, encoding, folder)
            size = sum(x.stat().st_size for x in folder.iterdir())
            assert size < 1_000_000, f"{folder.name}: {size} bytes"
        return folder


def _write(case: TinyCase, encoding: str, folder: Path) -> None:
    config_class: Callable[..., Any] = transformers.CONFIG_MAPPING[case.model_type]
    config = config_class(**case.config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
            if encoding:
                # Published masters are bfloat16; all three encodings start from the same values.
                parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
    model.save_pretrained(folder)
    if encoding:
        _encode_ternary(folder, encoding)


def _encode_ternary(folder: Path, encoding: str) -> None:
    """Rewrites the linear layers of a saved checkpoint in one of BitNet's encodings."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = BITNET_ENCODINGS[encoding]
    path.write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    if encoding in "AB":
        for name in list(tensors):
            module, _, kind = name.rpartition(".")
            if kind == "weight" and module.rpartition(".")[2] in _LINEARS:
                weight = tensors[name]
                scale = weight.abs().mean().clamp(min=1e-5)
                ternary = (weight / scale).round().clamp(-1, 1)
                # The packer changes its argument in place.
                tensors[name] = pack_weights(ternary.clone())
                stored = 1 / scale if encoding == "A" else scale
                tensors[f"{module}.weight_scale"] = stored.reshape(1)
    # Published files are bfloat16 throughout, scales and norms included.
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_oracle(folder: Path) -> Any:
    """The transformers model of a checkpoint: float32, eager attention, CPU."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    # Quantized models keep the types of the file, where sums of codes would round to 8 bits, and
    # refuse to be cast as a whole.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for module in model.modules():
        if hasattr(module, "weight_scale") and hasattr(module, "dtype"):
            module.dtype = torch.float32
    return model.eval()


def memory_oracle(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The same from a Llama config and its tensors; nothing is written."""
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**config), dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config["tie_word_embeddings"] else [])
    model.tie_weights()
    return model.eval()


def oracle_logits(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """Logits (n_tokens, vocab_size) of transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    return np.asarray(logits.numpy(), dtype=np.float32)


def oracle_tape(model: Any, tokens: list[int]) -> Tape:
    """The activation codes that transformers computes for a ternary model, in order.

    The expression is that of its quantizer. torch evaluates `127 / x` as `(1 / x) * 127`, so its
    scale may differ in the last bit from the quotient that the reference and the kernels take. That
    decides exact ties, which ternary sums do produce (half the largest input is 63.5 steps).
    """
    tape: Tape = []

    def capture(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0][0].detach().float()
            scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
            codes = (x * scale).round().clamp(-128, 127).to(torch.int8)
            kept = QuantizedActivations(codes.numpy(), (1 / scale).numpy(), x.shape[-1])
            tape.append((name, kept))

        return hook

    handles = [
        module.register_forward_pre_hook(capture(name))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _LINEARS
    ]
    oracle_logits(model, tokens)
    for handle in handles:
        handle.remove()
    return tape


def reference_weights(folder: Path) -> ReferenceWeights:
    """The weights of a tiny checkpoint for the reference decoder, BitNet encodings decoded here.

    It shares no code with `qh_runtime.checkpoints`, which has to find the same.
    """
    config = json.loads((folder / "config.json").read_text())
    quantization = config.get("quantization_config")
    tensors = load_file(folder / "model.safetensors")
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight_scale":
            continue
        is_linear = kind == "weight" and module.rpartition(".")[2] in _LINEARS
        if is_linear and (quantization or config.get("weight_bits") == 1):
            stored = tensors.get(f"{module}.weight_scale")
            matrices[module] = _ternary(tensor, stored, quantization or {})
        elif tensor.ndim == 2:
            matrices[module] = DenseMatrix(tensor.float().numpy())
        else:
            vectors[name] = tensor.float().numpy()
    return ReferenceWeights(matrices, vectors)


def _ternary(
    tensor: torch.Tensor, stored: torch.Tensor | None, quantization: Mapping[str, Any]
) -> CodedMatrix:
    if stored is None:
        weight = tensor.float().numpy()
        scale = max(np.float32(np.abs(weight).mean(dtype=np.float64)), np.float32(1e-5))
        codes = np.clip(np.rint(weight / scale), -1, 1).astype(np.int8)
    else:
        packed = tensor.numpy()
        fields = [(packed >> (2 * i)) & 3 for i in range(4)]
        codes = np.concatenate(fields).astype(np.int8) - np.int8(1)
        value = np.float32(stored.float().item())
        divides = quantization.get("linear_class", "bitlinear") == "bitlinear"
        scale = np.float32(1) / value if divides else value
    scales = np.full((len(codes), 1), scale, dtype=np.float32)
    return CodedMatrix(codes, scales, codes.shape[1], "token")
