"""vLLM's OpenAI API: the fields of requests, and the JSON of answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec

from core.builtin.sampler import Sampling
from core.builtin.tokenizer import encode, encode_chat

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"
SEGMENT = re.compile(r"seg\.(.+)\.\d+")

Count = Annotated[int, msgspec.Meta(ge=1)]


class RefusedError(Exception):
    """A request whose answer is an error."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.code, self.kind = code, kind

    def body(self) -> Json:
        """vLLM's error object."""
        return {
            "error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        }


class UnauthorizedError(RefusedError):
    """A request without the API key; vLLM's answer has no error object."""

    def __init__(self) -> None:
        super().__init__(401, "AuthenticationError", "Unauthorized")

    def body(self) -> Json:
        """vLLM's answer."""
        return {"error": str(self)}


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream reports about usage: at its end, and with `continuous_usage_stats` in every
    event."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # needs include_usage, as in vLLM


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that both kinds of request have; unknown fields are ignored."""

    model: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    seed: int | None = None
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None  # one answer per request

    def sampling(self, prompt: int, max_tokens: int | None, max_model_len: int) -> Sampling:
        """The sampling for a prompt of `prompt` tokens. RefusedError if prompt and answer exceed
        the context."""
        wanted = max_model_len - prompt if max_tokens is None else max_tokens
        if wanted < 1 or prompt + wanted > max_model_len:
            raise RefusedError(
                400,
                "BadRequestError",
                f"This model's maximum context length is {max_model_len} tokens. However, you "
                f"requested {max(wanted, 1)} output tokens and your prompt contains {prompt} input "
                "tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens.",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=wanted,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            # NumPy's seeds are not negative.
            seed=None if self.seed is None else self.seed % (1 << 64),
            ignore_eos=self.ignore_eos,
            stop=tuple(text for text in stop if text),
        )


class CompletionRequest(GenerateRequest, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int]
    max_tokens: Count | None = 16

    def tokens(self, vocab: int) -> list[int]:
        """The prompt's tokens. RefusedError if it is empty or has unknown tokens."""
        tokens = encode(self.prompt) if isinstance(self.prompt, str) else self.prompt
        if not tokens:
            raise RefusedError(400, "BadRequestError", "The prompt is empty.")
        if wrong := [token for token in tokens if not 0 <= token < vocab]:
            raise RefusedError(
                400,
                "BadRequestError",
                f"Token id {wrong[0]} is out of vocabulary: this model has {vocab} tokens "
                "(256 bytes, BOS, EOS). Send the prompt as text.",
            )
        return tokens


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True

    def answer(self, max_model_len: int) -> Json:
        """The prompt's tokens in vLLM's form."""
        tokens = encode(self.prompt, bos=self.add_special_tokens)
        return {
            "count": len(tokens),
            "max_model_len": max_model_len,
            "tokens": tokens,
            "token_strs": None,
        }


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str | list[TextPart]

    def text(self) -> str:
        """The content as one string."""
        return (
            self.content
            if isinstance(self.content, str)
            else "\n".join(p.text for p in self.content)
        )


class ChatRequest(GenerateRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None

    def tokens(self, vocab: int) -> list[int]:
        """The conversation's tokens; all are in every vocabulary."""
        return encode_chat((message.role, message.text()) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt: int
    completion: int

    def json(self) -> Json:
        """vLLM's usage object."""
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
        }


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """The answers to one completion request."""

    PREFIX: ClassVar = "cmpl-"

    id: str
    model: str
    created: int

    def opening(self) -> Json | None:
        """The event before the first token; None: there is none."""
        return None

    def chunk(self, text: str, finish: str | None, stop: str | None, usage: Usage | None) -> Json:
        """One event of the stream."""
        return self._object([_choice({"text": text}, finish, stop)], usage)

    def closing(self, usage: Usage) -> Json:
        """The event with the usage, at the stream's end."""
        return self._object([], usage)

    def whole(self, text: str, finish: str | None, stop: str | None, usage: Usage) -> Json:
        """The answer without a stream."""
        return self._object([_choice({"text": text}, finish, stop)], usage)

    def _object(self, choices: list[Json], usage: Usage | None) -> Json:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.json() if usage else None,
        }


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answers to one chat request."""

    PREFIX: ClassVar = "chatcmpl-"

    id: str
    model: str
    created: int

    def opening(self) -> Json | None:
        """The event that names the role."""
        return self._object(
            "chat.completion.chunk", [_choice({"delta": {"role": "assistant", "content": ""}})]
        )

    def chunk(self, text: str, finish: str | None, stop: str | None, usage: Usage | None) -> Json:
        """One event of the stream."""
        return self._object(
            "chat.completion.chunk", [_choice({"delta": {"content": text}}, finish, stop)], usage
        )

    def closing(self, usage: Usage) -> Json:
        """The event with the usage, at the stream's end."""
        return self._object("chat.completion.chunk", [], usage)

    def whole(self, text: str, finish: str | None, stop: str | None, usage: Usage) -> Json:
        """The answer without a stream."""
        message = {"message": {"role": "assistant", "content": text}}
        return self._object("chat.completion", [_choice(message, finish, stop)], usage)

    def _object(self, kind: str, choices: list[Json], usage: Usage | None = None) -> Json:
        known = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        return known | {"usage": usage.json()} if usage else known


Reply = CompletionReply | ChatReply


def _choice(content: Json, finish: str | None = None, stop: str | None = None) -> Json:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish, "stop_reason": stop}


def event(data: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def segment(request_id: str) -> str:
    """The label in `seg.<label>.<i>`, anywhere in the id; "" if there is none."""
    found = SEGMENT.search(request_id)
    return found[1] if found else ""
