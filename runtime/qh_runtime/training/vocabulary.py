"""The byte-level BPE vocabulary of the built-in model, and chat messages as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qh_runtime.training.messages import Message

#: Their order fixes their ids, 0 to 4.
SPECIAL_TOKENS = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
BOS_ID, EOS_ID = 0, 1

#: The chat template of the checkpoint; `encode_chat` below writes the same ids without a template
#: engine.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of exactly `vocab_size` entries learned from `texts`.

    Digits stay single tokens, so that small sums are sums of digits.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_chats(
    tokenizer: Tokenizer, chats: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[int]]]:
    """Return (ids, weights) for each conversation.

    A weight is 1 where a token is to be learned: the text of the assistant and the end token after
    it.
    """
    encoded = iter(
        tokenizer.encode_batch(
            [m.content for chat in chats for m in chat], add_special_tokens=False
        )
    )
    result = []
    for chat in chats:
        ids, weights = [BOS_ID], [0]
        for message in chat:
            text = next(encoded).ids
            learned = int(message.role == "assistant")
            ids += [SPECIAL_TOKENS.index(f"<|{message.role}|>"), *text, EOS_ID]
            weights += [0, *[learned] * len(text), learned]
        result.append((ids, weights))
    return result
