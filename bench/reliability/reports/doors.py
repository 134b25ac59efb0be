"""Line A8: headers and keys, as a server on a socket gets them. A key with "hush" in it is a
secret: no output and no file shows it."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

from support.recording import Recording

from bench.reliability.reports.case import Answer, Case, gatescope, wrong

NO_KEYS = {"OPENAI_API_KEY": "", "VLLM_API_KEY": ""}
MINE = ("--header", "Authorization: Bearer mine")
BASIC = "Basic " + base64.b64encode(b"user:hush").decode()


def _bench(
    server: Recording, user: str, flags: tuple[str, ...], env: dict[str, str], place: Path
) -> Answer:
    (place / "001.jsonl").write_text('{"prompt": "hello"}\n')
    url = server.url.replace("//", f"//{user}")
    where = ("--base-url", url, "--output-len", "3", "--result-dir", "out")
    return gatescope(place, "bench", "001.jsonl", *where, *flags, **{**NO_KEYS, **env})


def _shown(answer: Answer, place: Path) -> str:
    return answer.out + answer.err + "".join(f.read_text() for f in place.glob("out/*"))


def sent(
    user: str, flags: tuple[str, ...], env: dict[str, str], authorization: str, place: Path
) -> str:
    """Every request carries this header, and each header once."""
    with Recording() as server:
        answer = _bench(server, user, flags, env, place)
        asked = server.asked
    facts = {
        "exit code 0": answer.code == 0,
        authorization: {a.headers.get("authorization", "") for a in asked} == {authorization},
        "each header once": all(len(a.names) == len(set(a.names)) for a in asked),
        "no secret is shown": "hush" not in _shown(answer, place),
    }
    return wrong(facts, answer)


def refused(flags: tuple[str, ...], env: dict[str, str], said: str, place: Path) -> str:
    """Before anything is sent, without showing the value."""
    with Recording() as server:
        answer = _bench(server, "", flags, env, place)
        asked = server.asked
    facts = {
        "exit code 2": answer.code == 2,
        said: said in answer.err,
        "nothing sent": not asked,
        "no secret is shown": "hush" not in _shown(answer, place),
    }
    return wrong(facts, answer)


def key(value: str) -> dict[str, str]:
    return {"OPENAI_API_KEY": value}


SENT: list[tuple[str, str, tuple[str, ...], dict[str, str], str]] = [
    ("no key", "", (), {}, ""),
    ("a key", "", (), key("hush"), "Bearer hush"),
    ("the user's header wins over a key", "", MINE, key("hush"), "Bearer mine"),
    (
        "the last of two headers wins",
        "",
        ("--header", "authorization: x", *MINE),
        {},
        "Bearer mine",
    ),
    ("a header wins over the URL", "user:hush@", MINE, {}, "Bearer mine"),
    ("user:pw@ wins over a key", "user:hush@", (), key("of the environment"), BASIC),
    ("a key with a newline at its end", "", (), key("hush\n"), "Bearer hush"),
    ("a key with blanks around it", "", (), key("\r\n hush "), "Bearer hush"),
    ("a blank key is none", "", (), {**key(" \n"), "VLLM_API_KEY": "hush"}, "Bearer hush"),
]
REFUSED: list[tuple[str, tuple[str, ...], dict[str, str], str]] = [
    *(
        (f"a key {what}", (), key(value), "OPENAI_API_KEY: expected a key in ASCII on one line")
        for what, value in (
            ("with a line break", "hush\nhush"),
            ("with a header in it", "hush\r\nX-Evil: 1"),
            ("that is not ASCII", "hushé"),
            ("with a control character", "hush\x7f"),
        )
    ),
    *(
        (f"a header {what}", ("--header", value), {}, "argument --header: expected")
        for what, value in (
            ("without a colon", "Authorization hush"),
            ("with a line break", "X-A: 1\r\nX-B: hush"),
            ("without a name", ": hush"),
            ("that is not ASCII", "X: hushé"),
            ("that frames the body", "Content-Length: 5"),
        )
    ),
]
CASES = [
    *(
        Case("A8", name, partial(sent, user, flags, env, header))
        for name, user, flags, env, header in SENT
    ),
    *(Case("A8", name, partial(refused, flags, env, said)) for name, flags, env, said in REFUSED),
]
