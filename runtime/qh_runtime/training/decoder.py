"""The BitNet decoder in torch, written to be trained: one call returns the logits of whole windows.

Parameter names are those of the Hugging Face layout, so that export is a renaming of nothing.

Source: Ma et al. 2025, "BitNet b1.58 2B4T", section 2 (sub-norms, ReLU^2 gate, no biases).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from qh_runtime.training.config import ModelConfig
from qh_runtime.training.ternary import BitLinear, quantize_activation


class RMSNorm(nn.Module):
    """Root-mean-square norm; statistics in float32 whatever the input is."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed (..., features) input as float32."""
        x = x.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 (max_position_embeddings, head_dim), both halves alike."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse_frequency = 1.0 / (config.rope_theta**exponent)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequency[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (..., n_tokens, head_dim) turned by its positions; pairs are (i, i + head_dim /
    2).
    """
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Causal grouped-query attention with a norm between the heads and the output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        key_value = config.num_key_value_heads * config.head_dim
        self.q_proj = BitLinear(config.hidden_size, config.hidden_size)
        self.k_proj = BitLinear(config.hidden_size, key_value)
        self.v_proj = BitLinear(config.hidden_size, key_value)
        self.o_proj = BitLinear(config.hidden_size, config.hidden_size)
        self.attn_sub_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the update (batch, n_tokens, hidden_size) for x of that shape, already normed."""
        batch, n_tokens, _ = x.shape
        x = quantize_activation(x)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, n_tokens, -1, self.config.head_dim).transpose(1, 2)

        query = rotate(heads(self.q_proj(x)), cos, sin).to(x.dtype)
        key = rotate(heads(self.k_proj(x)), cos, sin).to(x.dtype)
        value = heads(self.v_proj(x))
        # Repeated heads cost little here and keep the fused causal kernel, which has no grouped
        # form on every CPU.
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            is_causal=True,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, n_tokens, -1)
        update: Tensor = self.o_proj(quantize_activation(self.attn_sub_norm(mixed).to(x.dtype)))
        return update


class FeedForward(nn.Module):
    """down(norm(relu(gate)^2 * up))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = BitLinear(config.intermediate_size, config.hidden_size)
        self.ffn_sub_norm = RMSNorm(config.intermediate_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update (batch, n_tokens, hidden_size) for x of that shape, already normed."""
        x = quantize_activation(x)
        gated = functional.relu(self.gate_proj(x).float()).square() * self.up_proj(x).float()
        update: Tensor = self.down_proj(quantize_activation(self.ffn_sub_norm(gated).to(x.dtype)))
        return update


class Layer(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the residual stream (batch, n_tokens, hidden_size) float32 after this layer."""
        x = x + self.self_attn(self.input_layernorm(x).to(dtype), cos, sin).float()
        return x + self.mlp(self.post_attention_layernorm(x).to(dtype)).float()


class BitNetDecoder(nn.Module):
    """The whole model. Matrix products run in `dtype`; norms, residual stream and logits stay
    float32.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialize(self, seed: int) -> None:
        """Fill all matrices with normal values; equal seeds give equal models.

        Only the pattern of a ternary matrix matters at first (its scale follows the mean), so all
        of them get the customary 1/sqrt(in_features).
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "embed_tokens.weight":
                    parameter.normal_(0.0, 0.02, generator=generator)
                elif parameter.dim() == 2:
                    parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]), generator=generator)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the normed last hidden states (batch, n_tokens, hidden_size) float32."""
        n_tokens = tokens.shape[1]
        cos, sin = self.cos[:n_tokens], self.sin[:n_tokens]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, self.dtype)
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, n_tokens, vocab_size) for token ids (batch, n_tokens) int64, in
        `dtype`.
        """
        hidden = self.hidden(tokens).to(self.dtype)
        return functional.linear(hidden, self.embed_tokens.weight.to(self.dtype))
