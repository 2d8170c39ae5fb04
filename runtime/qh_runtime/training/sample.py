"""Greedy replies of the trained model, for the card and for looking at a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from qh_runtime.training.decoder import BitNetDecoder
from qh_runtime.training.messages import Message
from qh_runtime.training.vocabulary import EOS_ID, SPECIAL_TOKENS, encode_chats


@torch.no_grad()
def greedy_reply(
    model: BitNetDecoder, tokenizer: Tokenizer, chat: Sequence[Message], max_new_tokens: int = 200
) -> str:
    """Return the most probable reply to a chat that ends with the user; no KV cache, so slow."""
    ids = encode_chats(tokenizer, [chat])[0][0] + [SPECIAL_TOKENS.index("<|assistant|>")]
    start = len(ids)
    limit = min(model.config.max_position_embeddings, start + max_new_tokens)
    while len(ids) < limit:
        chosen = int(model(torch.tensor([ids]))[0, -1].argmax())
        if chosen == EOS_ID:
            break
        ids.append(chosen)
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def converse(model: BitNetDecoder, tokenizer: Tokenizer, turns: Sequence[str]) -> list[Message]:
    """Return the conversation that greedy replies to these user turns make."""
    chat: list[Message] = []
    for turn in turns:
        chat.append(Message("user", turn))
        chat.append(Message("assistant", greedy_reply(model, tokenizer, chat)))
    return chat
