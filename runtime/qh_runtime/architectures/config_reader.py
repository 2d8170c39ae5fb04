"""ConfigReader: typed, range-checked access to a config.json that a stranger wrote.

Every key is either read by an architecture, known to be harmless, or held to the rule of
`ConfigReader.finish`: transformers ignores keys that it does not know, so a key is refused only
where its name says that it would change the computation and its value is not neutral.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from qh_runtime.errors import UnsupportedArchitectureError

__all__ = ["ConfigReader", "shown"]

_T = TypeVar("_T")

# Set by training, generation, tokenization or bookkeeping; none of them enters the forward pass at
# inference. Dropout is off at inference; pretraining_tp only ordered the sums of training;
# initializers act before training; max_window_layers means something beside use_sliding_window
# alone, which is refused where it is true and not read.
_HARMLESS_NAMES = """
    architectures attn_implementation auto_map
    bad_words_ids begin_suppress_tokens bos_token_id chat_template chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_bitnet_config is_decoder is_encoder_decoder
    label2id length_penalty max_length max_sequence_length max_window_layers min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads quantization_config remove_invalid_values repetition_penalty
    resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())

# Dropout is off at inference, and flash attention computes the same by another route.
_HARMLESS_PARTS = re.compile("dropout|flash")

# A name with one of these parts speaks of the computation; see `finish`.
_MATHEMATICS = re.compile(
    r"activation|alibi|attention|attn|bias|block_size|clip|conv|cross|decay|embedding|emb_|_emb|expert|gating|"
    r"head|interleav|kernel|layer|lora|mamba|mla|moe|multipl|mup|norm|parallel|"
    r"per_layer|position|prediction|qk|recurr|residual|rope|rotary|router|scal|shared|sink|skip|"
    r"soft_?cap|sparse|ssm|state|vision|window"
)


def shown(value: object) -> str:
    """A short, printable form of a hostile value: bounded in length and depth, controls escaped."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class ConfigReader:
    """Reads one JSON object and remembers which keys were read.

    Args:
        config: the parsed object.
        where: what it is called in errors, such as "config.json".
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        if not isinstance(config, Mapping):
            raise UnsupportedArchitectureError(
                f"{where}: expected an object, found {type(config).__name__}",
                hint="use the config.json of a Hugging Face checkpoint",
                key=where,
                value=shown(config),
            )
        self._config = config
        self._where = where
        self._read: set[str] = set()

    @property
    def where(self) -> str:
        """What the object is called in errors."""
        return self._where

    def refuse(
        self, key: str, expected: str, hint: str | None = None
    ) -> UnsupportedArchitectureError:
        """The error for a key; facts: key, value, expected. The caller raises it."""
        value = shown(self._config.get(key))
        return UnsupportedArchitectureError(
            f"{self._where}: {shown(key)[1:-1]}: expected {expected}, found {value}",
            hint=hint or "check the config.json against the one the model's author published",
            key=key,
            value=value,
            expected=expected,
        )

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._config.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is, or None; counts as read."""
        self._read.add(key)
        return self._config.get(key)

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """An integer in low..high. Absent (not null) takes the default where there is one."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"an integer {low}..{high}")
        return value

    def optional_integer(self, key: str, default: int | None, low: int, high: int) -> int | None:
        """An integer in low..high or null."""
        if self._value(key, default) is None:
            return None
        return self.integer(key, default, low, high)

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """A finite number in low..high; integers are accepted."""
        value = self._value(key, default)
        expected = f"a finite number {low:g}..{high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, expected)
        # An integer beyond the float range would make float() raise, so it is compared first.
        if not low <= value <= high or not math.isfinite(value):
            raise self.refuse(key, expected)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false; null counts as the default, as many exporters write it."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def choice(self, key: str, default: str, allowed: Mapping[str, _T], hint: str) -> _T:
        """The entry of `allowed` that the string value names."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, f"one of {', '.join(sorted(allowed))}", hint)
        return allowed[value]

    def section(self, key: str) -> ConfigReader | None:
        """A reader of the object under the key, or None where absent, null or empty."""
        value = self.raw(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object")
        return ConfigReader(value, f"{self._where}: {key}")

    def strings(self, key: str, count: int | None = None) -> list[str] | None:
        """A list of strings (of a given length), or None where absent or null."""
        value = self.raw(key)
        if value is None:
            return None
        good = isinstance(value, list) and all(isinstance(x, str) for x in value)
        if not good or (count is not None and len(value) != count):
            raise self.refuse(key, "a list of strings" + (f" of length {count}" if count else ""))
        return list(value)

    def require(self, key: str, values: tuple[object, ...], why: str) -> None:
        """Refuses the key unless it is absent, null or one of the values (same type)."""
        value = self.raw(key)
        if value is None or any(type(value) is type(v) and value == v for v in values):
            return
        raise self.refuse(key, " or ".join(shown(v) for v in values), why)

    def finish(self, *, every_key: bool = False) -> None:
        """Refuses every key that was not read and may change the computation.

        The rule: a key is accepted when it is known to be harmless, starts with an underscore, has
        a neutral value (null, false, empty, 0, or 1 for a factor or a count), or its name has
        nothing to do with the computation. transformers itself does not use unknown keys of
        these model types, so what passes here is ignored by the original implementation too.
        With `every_key`, for objects of nothing but mathematics, only a neutral value passes.
        """
        for key, value in self._config.items():
            if not isinstance(key, str):
                raise self.refuse(shown(key), "keys that are strings")
            if key in self._read or _is_neutral(key, value):
                continue
            harmless = (
                key in _HARMLESS or key.startswith("_") or _HARMLESS_PARTS.search(key) is not None
            )
            if every_key or (not harmless and _MATHEMATICS.search(key)):
                raise self.refuse(
                    key,
                    "no such key, or a neutral value",
                    "this key changes what the model computes and is not supported",
                )

    def _value(self, key: str, default: object) -> object:
        self._read.add(key)
        return self._config.get(key, default)


def _is_neutral(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return not value
    if isinstance(value, float | int):
        # A factor is neutral at 1, an amount at 0, and a number of experts at either.
        if re.search("multipl|scal|factor", key):
            return value == 1
        return value == 0 or (value == 1 and re.search("num_|n_", key) is not None)
    return value is None or (isinstance(value, str | list | dict) and not value)
