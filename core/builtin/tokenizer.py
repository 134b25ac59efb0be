"""Byte-level tokens: 256 bytes, BOS and EOS."""

from __future__ import annotations

from collections.abc import Iterable

BOS, EOS = 256, 257

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _piece(token: int) -> str:
    return chr(token) if 0x20 <= token < 0x7F or chr(token) in "\n\t" else REPLACEMENT


PIECES = tuple(_piece(token) for token in range(EOS + 1))
"""The text of each token, never empty: a client counts the events that have text.

A byte that is not a character by itself is not joined with its neighbours. Control bytes are
replaced because the text is shown on terminals.
"""


def encode(text: str, *, bos: bool = True) -> list[int]:
    """BOS, if `bos`, and the text's UTF-8 bytes."""
    return [BOS, *text.encode()] if bos else [*text.encode()]


def encode_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """(role, text) pairs in Mixtral's chat form; every answer ends with EOS."""
    tokens = [BOS]
    for role, text in messages:
        tokens += f" {text}".encode() if role == "assistant" else f" [INST] {text} [/INST]".encode()
        if role == "assistant":
            tokens.append(EOS)
    return tokens
