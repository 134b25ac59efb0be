"""The JSON of one event of a streamed answer: the usual shape fast, odd shapes too, and an error's
words."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, NoReturn

import msgspec

from core import files

MAX_ERROR_TEXT = 300
MAX_COUNT = 1 << 32
# A stream of one of these errors may have no other sign of them.
FAILED_REASONS = ("abort", "aborted", "error", "cancelled", "timeout")
# Without any of these keys an event is no error.
ERROR_KEYS = re.compile(rb'"(?:object|type|base_resp|error_code|code|detail)"')
GOOD_CODES = (None, 0, 200, "", "0", "200", "ok", "success")
WORDS = ("message", "msg", "status_msg", "detail", "error", "reason", "text")
KINDS = ("type", "code", "status_code", "error_code", "status")
PARTS = ("text", "thinking", "content")

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class Usage(msgspec.Struct, gc=False):
    """Counts of tokens; None or 0 where the server does not say."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chat event adds to the answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None
    reasoning_details: Any = None

    @property
    def text(self) -> str | None:
        return self.content or self.reasoning_content or self.reasoning

    @property
    def has_more(self) -> bool:
        """Whether it has content that is not part of the text."""
        return bool(self.tool_calls or self.function_call or self.refusal or self.reasoning_details)


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Event(msgspec.Struct, gc=False):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


NOT_JSON = (*files.NOT_JSON, ValueError)
decode_usual = msgspec.json.Decoder(Event).decode


def decode(payload: bytes) -> Event | None:
    """An event of any shape that has a meaning; None for one that says nothing (null). One of
    NOT_JSON if it is something else."""
    try:
        return decode_usual(payload)
    except NOT_JSON:
        pass
    raw = _generic(payload)
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, got {_shown(raw)}")
    return Event(_choices(raw.get("choices")), _usage(raw.get("usage")), raw.get("error"))


def flat_error(payload: bytes) -> str:
    """The words of an event without choices that is itself an error; "" if it is none."""
    if not ERROR_KEYS.search(payload):
        return ""
    try:
        raw = _generic(payload)
    except NOT_JSON:
        return ""
    if not isinstance(raw, dict):
        return ""
    base = raw.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        return words(base)
    is_coded = _is_code(raw.get("code")) and any(name in raw for name in WORDS)
    is_error = "error" in (raw.get("object"), raw.get("type"))
    if is_error or is_coded or _is_code(raw.get("error_code")) or raw.get("detail"):
        return words(raw)
    return ""


def event_error(data: bytes) -> str:
    """The words of an SSE event or field called "error"; "" if it holds an empty value."""
    try:
        raw = _generic(data)
    except NOT_JSON:
        return data.decode(errors="replace").strip()
    if isinstance(raw, dict) and raw.get("error"):
        raw = raw["error"]
    return words(raw)


def words(error: Any) -> str:
    """What a server says of an error: its message, then its kind and code; "" if it is empty."""
    if not error:
        return ""
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return _shown(error)
    if not any(error.values()):
        return ""
    message = next((words(error[name]) for name in WORDS if error.get(name)), "")
    kinds = [error.get(name) for name in KINDS]
    about = ", ".join(str(kind) for kind in kinds if kind and isinstance(kind, str | int))
    if not message:
        return _shown(error)
    return f"{message} ({about})" if about else message


def _is_code(code: Any) -> bool:
    """Whether a code is that of an error."""
    return isinstance(code, str | int) and code not in GOOD_CODES


def _generic(payload: bytes) -> Any:
    """Any JSON; text may hold half a character, which becomes U+FFFD. One of NOT_JSON."""
    return json.loads(payload, parse_constant=_refuse)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _choices(raw: Any) -> list[Choice]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise ValueError(f"expected an array of choices, got {_shown(raw)}")
    return [_choice(each) for each in raw if isinstance(each, dict)]


def _choice(raw: dict[str, Any]) -> Choice:
    index, reason = raw.get("index"), raw.get("finish_reason")
    return Choice(
        index if isinstance(index, int) else 0,
        _text(raw.get("text")),
        _delta(raw["delta"]) if isinstance(raw.get("delta"), dict) else None,
        reason if isinstance(reason, str) else None,
    )


def _delta(raw: dict[str, Any]) -> Delta:
    spoken = ("content", "reasoning_content", "reasoning")
    more = ("tool_calls", "function_call", "refusal", "reasoning_details")
    return Delta(*(_text(raw.get(name)) for name in spoken), *(raw.get(name) for name in more))


def _text(raw: Any) -> str | None:
    """A text, or a list of parts of one."""
    if isinstance(raw, str):
        return raw.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(raw, list):
        return "".join(_text(part) or "" for part in raw)
    if isinstance(raw, dict):
        return next((text for name in PARTS if (text := _text(raw.get(name)))), None)
    return None


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    return Usage(_count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens")))


def _count(raw: Any) -> int | None:
    """A count; None where it is unknown: no number, negative, or not whole. ValueError if it is
    absurdly large."""
    if isinstance(raw, bool) or not isinstance(raw, int | float) or raw < 0:
        return None
    if raw > MAX_COUNT:
        raise ValueError(f"a count of over {MAX_COUNT} tokens")
    return int(raw) if raw == int(raw) else None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:MAX_ERROR_TEXT]
