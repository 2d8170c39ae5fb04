"""A session on real weights, put together from the runtime's parts; for tests of sessions."""

from __future__ import annotations

from pathlib import Path

from qh_kernels.decoder import Decoder
from qh_runtime.architectures import spec_from_config
from qh_runtime.architectures.decoder_shape import decoder_shape
from qh_runtime.checkpoints.config import read_config
from qh_runtime.checkpoints.folder import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.packing.packed_model import load_packed_model
from qh_runtime.session.events import EngineInfo
from qh_runtime.session.session import NativeSession
from qh_runtime.tokenizers.chat_template import load_chat_template
from qh_runtime.tokenizers.from_hf import load_tokenizer

__all__ = ["open_session"]


def open_session(folder: Path, *, context_length: int = 256, threads: int = 1) -> NativeSession:
    """Return a session on the model in a folder, in exact arithmetic."""
    config = read_config(folder).model
    spec = spec_from_config(config)
    packed = load_packed_model(spec, open_checkpoint(folder), layout_for(config), threads=threads)
    assert packed is not None
    decoder = Decoder(
        decoder_shape(spec),
        packed.weights,
        context_length=context_length,
        threads=threads,
        exact=True,
    )
    tokenizer = load_tokenizer(folder)
    info = EngineInfo(
        name=folder.name,
        model_type=str(config["model_type"]),
        parameters=spec.parameters,
        format="bf16",
        device="CPU",
        isa=decoder.isa,
        threads=threads,
        context_length=context_length,
        planned_bytes=0,
    )
    return NativeSession(decoder, tokenizer, load_chat_template(folder, tokenizer), info)
