"""Where requests go, and who asks: the URLs of a server's API, keys, and the user's headers."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from core.errors import UsageError

Headers = tuple[tuple[str, str], ...]

KEY_VARIABLES = ("OPENAI_API_KEY", "VLLM_API_KEY")
PATHS = re.compile(r"/(chat/completions|completions|models)$")
# A base of an API ends in a version, as in /v1, /api/v3, /v1beta/openai.
VERSION = re.compile(r"/v\d[\w.-]*(/openai)?$")
SECRET = ("authorization", "proxy-authorization", "api-key", "x-api-key", "cookie")


@dataclass(frozen=True, slots=True)
class Address:
    """A server's API, from any URL that a user has of it."""

    shown: str  # for results and messages: without user, password and query
    root: str  # what /completions is appended to
    query: str  # "?api-version=1" or ""; it may hold a key
    path: str  # of the completions that the URL named: "chat/completions", "completions" or ""
    headers: Headers  # Authorization, if the URL has a user

    def url(self, path: str) -> str:
        """Of a path of the API: "completions", "chat/completions", "models"."""
        return f"{self.root}/{path}{self.query}"

    @property
    def given(self) -> str:
        """A text that names this address, without user and password."""
        return self.shown + self.query

    @property
    def tokenize_url(self) -> str:
        """vLLM's /tokenize stands beside the versions."""
        return f"{VERSION.sub('', self.root)}/tokenize{self.query}"


def of(text: str) -> Address:
    """The address that a text names: a server, a base of its API, or one of its endpoints.
    UsageError, without the password, if it is no URL."""
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    is_port = url.port is None or 1 <= url.port <= 65535
    if url.scheme not in ("http", "https") or not url.host or not is_port or url.fragment:
        raise UsageError(
            f"expected a URL such as http://host:8000 or https://host/v1, got {_hidden(text)!r}"
        )
    whole = str(url.copy_with(username=None, password=None, query=None)).rstrip("/")
    found = PATHS.search(whole)
    base = PATHS.sub("", whole)
    root = base if found or VERSION.search(base) else f"{base}/v1"
    return Address(
        shown=root.removesuffix("/v1") if root.endswith("/v1") else whole,
        root=root,
        query=f"?{url.query.decode()}" if url.query else "",
        path=found.group(1) if found and found.group(1) != "models" else "",
        headers=_basic(url),
    )


def _basic(url: httpx.URL) -> Headers:
    if not url.userinfo:
        return ()
    pair = f"{unquote(url.username)}:{unquote(url.password)}".encode()
    return (("Authorization", f"Basic {base64.b64encode(pair).decode()}"),)


def _hidden(text: str) -> str:
    return re.sub(r"(?<=//)[^/@]*@|^[^/@]*@", "…@", text)


def key(environment: Mapping[str, str]) -> str:
    """The API key in the environment; "" if there is none. UsageError, without the key, for one
    that no header can hold."""
    for name in KEY_VARIABLES:
        if found := environment.get(name, "").strip():
            if not (found.isascii() and found.isprintable()):
                raise UsageError(
                    f"{name}: expected a key in ASCII on one line, found more; set it again"
                )
            return found
    return ""


def bearer(api_key: str) -> Headers:
    return (("Authorization", f"Bearer {api_key}"),) if api_key else ()


def merged(*lists: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """All headers, each name once: a later one in place of an earlier."""
    return list({name.lower(): (name, value) for each in lists for name, value in each}.values())


def without_secrets(text: str, sent: Iterable[tuple[str, str]]) -> str:
    """`text` without the keys in the headers that were sent: servers quote them in errors."""
    for name, value in sent:
        if name.lower() in SECRET:
            for secret in (value, value.partition(" ")[2]):
                if len(secret) > 3:
                    text = text.replace(secret, "…")
    return text
