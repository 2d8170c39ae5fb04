"""Repositories that carry code in every way that is known: none of it may be fetched or run."""

from __future__ import annotations

import json
import pickle
from typing import Any

__all__ = ["CODE_REPOSITORIES", "REFUSED_BY_NAMES"]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle of the checkpoint ran",))


_PICKLE = pickle.dumps(_Evil())
_PYTHON = b"raise SystemExit('code of the checkpoint ran')\n"
_AUTO_MAP = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", None],
}
_TOKENIZER = b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
# A sound header of one tensor, so that weights are not what the refusal is for.
_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
_WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(4)


def _config(**fields: Any) -> bytes:
    return json.dumps({"model_type": "evil", **fields}).encode()


def _pickled(*names: str) -> dict[str, bytes]:
    return {
        "config.json": _config(model_type="llama"),
        "tokenizer.json": _TOKENIZER,
        **dict.fromkeys(names, _PICKLE),
    }


def _coded(**fields: Any) -> dict[str, bytes]:
    """Sound weights, and a config that asks for the repository's own code."""
    return {
        "config.json": _config(auto_map=_AUTO_MAP, **fields),
        "tokenizer.json": _TOKENIZER,
        "model.safetensors": _WEIGHTS,
        "configuration_evil.py": _PYTHON,
        "modeling_evil.py": _PYTHON,
        "tokenization_evil.py": _PYTHON,
    }


CODE_REPOSITORIES: dict[str, dict[str, bytes]] = {
    "pickle": _pickled("pytorch_model.bin"),
    "pickle in shards": _pickled(
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ),
    "pickle .pt": _pickled("model.pt"),
    "pickle .pth": _pickled("consolidated.00.pth"),
    "pickle .ckpt": _pickled("model.ckpt"),
    "pickle .pkl": _pickled("model.pkl"),
    "pickle .PICKLE": _pickled("model.PICKLE"),
    "joblib": _pickled("model.joblib"),
    "arrays of objects": _pickled("weights.npz"),
    "nemo archive": _pickled("model.nemo"),
    "Keras with lambdas": _pickled("tf_model.h5"),
    "ONNX with own operators": _pickled("model.onnx"),
    "code alone": {"modeling_evil.py": _PYTHON, "setup.py": _PYTHON},
    "a library": {"config.json": _config(), "evil.so": b"\x7fELF", "tokenizer.json": _TOKENIZER},
    "pickled adapter": _pickled("adapter_model.bin"),
    "pipeline of pictures with code": {
        "model_index.json": b'{"_class_name": "EvilPipeline"}', "pipeline.py": _PYTHON,
        "unet/diffusion_pytorch_model.bin": _PICKLE,
    },
    "safetensors under another name, and code": {
        "config.json": _config(), "tokenizer.json": _TOKENIZER, "evil.safetensors": _WEIGHTS,
        "load_evil.py": _PYTHON,
    },
    "GGUF with code beside it": {"m.gguf": b"GGUF", "run.py": _PYTHON},
    "pickle named in an index": {
        **_pickled("pytorch_model.bin"),
        "model.safetensors.index.json": b'{"weight_map": {"a": "pytorch_model.bin"}}',
    },
    "code named in an index": {
        **_coded(), "model.safetensors": b"",
        "model.safetensors.index.json": b'{"weight_map": {"a": "modeling_evil.py"}}',
    },
    "pickle under the name of safetensors": {
        **_pickled("model.safetensors"), "config.json": _config(model_type="llama"),
    },
    "archive under the name of safetensors": {
        **_pickled(), "model.safetensors": b"PK\x03\x04" + bytes(200),
    },
    "own code for an unknown type": _coded(),
    "own code, text model inside": _coded(text_config={"model_type": "llama"}),
    "own code, type with a path": _coded(model_type="../../modeling_evil"),
    "own code, type with dots": _coded(model_type="os.path"),
    "own code, type of a support module": _coded(model_type="config_reader"),
    "own code for the tokenizer alone": {
        k: v for k, v in _coded(model_type="llama").items() if k != "tokenizer.json"
    },
    "own pipeline": _coded(custom_pipelines={"text": {"impl": "modeling_evil.Evil"}}),
    "own quantizer": _coded(quantization_config={"quant_method": "evil", "module": "evil"}),
}  # fmt: skip

# Those that their list of files gives away, and the rule that says so; the others need a look
# into files, which is the preflight's part.
REFUSED_BY_NAMES = {
    "pickle": "pickle",
    "pickle in shards": "pickle",
    "pickle .pt": "pickle",
    "pickle .pth": "pickle",
    "pickle .ckpt": "pickle",
    "pickle .pkl": "pickle",
    "pickle .PICKLE": "pickle",
    "joblib": "pickle",
    "arrays of objects": "pickle",
    "nemo archive": "pickle",
    "Keras with lambdas": "other",
    "ONNX with own operators": "other",
    "code alone": "code",
    "a library": "code",
    "pickled adapter": "adapter",
    "pipeline of pictures with code": "pipeline",
    "safetensors under another name, and code": "safetensors",
    "GGUF with code beside it": "gguf",
    "own code for the tokenizer alone": "missing file",
}
