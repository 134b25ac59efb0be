#!/usr/bin/env python3
"""Ground-truth streaming server: an OpenAI-compatible endpoint whose token times are known.

It exists to test load clients. Tokens leave on a fixed schedule (or as fast as the client reads,
"firehose"), one send(2) per SSE event, and the server keeps the CLOCK_MONOTONIC time just before
every send. time.perf_counter_ns() reads the same clock in every process of one Linux host, so a
client's timestamps can be compared with the server's directly.

Standard library only. One thread, one epoll loop, raw sockets: no event-loop queue stands between
the timestamp and the system call.

    python truth_server.py --port 8100 --ttft-ms 50 --itl-ms 10 --truth-file truth.jsonl
    python truth_server.py --port 8100 --firehose --burst 1

It serves POST /v1/completions, POST /v1/chat/completions (streaming or not), GET /v1/models,
GET /health, GET /version, GET /metrics (empty), GET /truth (JSON lines), GET /stats (the server's
own CPU time and counts) and POST /control (a JSON object: any schedule field below, and
"reset": true to forget the records so far).

One truth record per request:
  n            arrival order, from 0
  id           the client's X-Request-Id, or null
  prompt_head  first 64 characters of the prompt (a second way to match records)
  answer_head  the letters of its first four events (with --named a third way to match records)
  conn         number of the TCP connection
  conn_use     requests that this connection carried before this one
  t_accept     ns, accept() of that connection
  t_arrived    ns, the kernel received the request's last bytes (Linux; else as t_request)
  t_request    ns, the request had been read completely
  tokens       tokens requested
  per_event    tokens carried by one SSE event (the last event's text has full length even if
               `tokens` is not a multiple of it; usage is exact)
  t_due        ns, when the schedule wanted each token event (timed mode)
  t_send       ns, just before the send of token event k (the list's k-th entry)
  t_done       ns, just before the send of usage + [DONE]
  t_role       ns, chat only: send of the first event, which has the role and no text
  blocked      sends that the socket did not take completely (the client was not reading)
  end          "done", "cut" (--cut-every), "stalled" (--stall-every), "failed" (--fail-every) or
               "gone" (the client left)
"""

from __future__ import annotations

import argparse
import collections
import gc
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from array import array
from typing import Any

now = time.perf_counter_ns
MS = 1_000_000
SO_TIMESTAMPNS = 35
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = tuple(range(26))
CHOICES = {
    "text": '{"index":0,"text":"%s","logprobs":null,"finish_reason":%s,"stop_reason":null}',
    "chat": '{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s}',
}


class Schedule:
    """What the server does with the next request; POST /control can set every field."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.ttft_ms: float = a.ttft_ms
        self.itl_ms: float = a.itl_ms
        self.jitter: float = a.jitter  # each interval is multiplied by 1 ± jitter
        self.seed: int = a.seed
        self.grid: bool = a.grid  # due times move up to a common itl_ms grid
        self.firehose: bool = a.firehose
        self.burst: int = a.burst  # firehose: SSE events per send
        self.per_event: int = a.per_event  # tokens in one SSE event
        self.role_early: bool = a.role_early  # chat: role event at once, not with token 0
        self.fail_every: int = a.fail_every  # every k-th request is answered 500
        self.cut_every: int = a.cut_every  # every k-th stream is closed half way
        self.stall_every: int = a.stall_every  # every k-th stream falls silent half way
        self.named: bool = a.named  # an answer repeats four letters of its own
        self.split: int = a.split  # each send is cut into sends of this many bytes; 0: uncut

    def set(self, fields: dict[str, Any]) -> None:
        for k, v in fields.items():
            if k != "reset":
                if k not in self.__dict__:
                    raise ValueError(f"no such field: {k}")
                setattr(self, k, type(self.__dict__[k])(v))


def arrival(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's receive timestamp on the monotonic clock; 0 if there is none."""
    if not ancillary:
        return 0
    seconds: int
    nanoseconds: int
    seconds, nanoseconds = struct.unpack("@ll", ancillary[0][2])
    return seconds * 1_000_000_000 + nanoseconds + now() - time.time_ns()


def framed(payload: bytes) -> bytes:
    """One SSE event inside one HTTP/1.1 chunk."""
    body = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(body), body)


class Events:
    """Ready-made wire bytes, by endpoint kind and tokens per event: 26 texts, a letter each."""

    def __init__(self, model: str) -> None:
        head = '{"id":"%s-0123456789abcdef0123456789abcdef","object":"%s","created":1700000000,'
        head += '"model":' + json.dumps(model).replace("%", "%%") + ',"choices":['
        self.heads = {
            "text": head % ("cmpl", "text_completion"),
            "chat": head % ("chatcmpl", "chat.completion.chunk"),
        }
        role = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        role = self.heads["chat"] + role + '"finish_reason":null}]}'
        self.role = framed(role.encode())
        self._made: dict[tuple[str, int], tuple[list[bytes], list[bytes]]] = {}

    def of(self, kind: str, per: int) -> tuple[list[bytes], list[bytes]]:
        """The 26 events with `per` tokens each; those of a last event."""
        if (kind, per) not in self._made:
            texts = [letter * per for letter in LETTERS]
            middle = [self._event(kind, text, "null") for text in texts]
            self._made[kind, per] = middle, [self._event(kind, text, '"length"') for text in texts]
        return self._made[kind, per]

    def _event(self, kind: str, text: str, reason: str) -> bytes:
        return framed(f"{self.heads[kind]}{CHOICES[kind] % (text, reason)}]}}".encode())


class Conn:
    """A TCP connection."""

    __slots__ = ("buf", "fd", "num", "out", "req", "sock", "t_accept", "t_arrived", "uses")

    def __init__(self, sock: socket.socket, num: int) -> None:
        self.sock, self.fd, self.num, self.t_accept = sock, sock.fileno(), num, now()
        self.uses = self.t_arrived = 0
        self.buf, self.out = bytearray(), b""
        self.req: Req | None = None


class Req:
    """A request; its record is `row`."""

    __slots__ = (
        "blocked",
        "burst",
        "conn",
        "connnum",
        "cut_at",
        "due",
        "end",
        "events",
        "fire",
        "id",
        "k",
        "kind",
        "last",
        "letters",
        "mid",
        "n",
        "per",
        "prompt_head",
        "stall_at",
        "t_accept",
        "t_arrived",
        "t_done",
        "t_request",
        "t_role",
        "t_send",
        "tail",
        "tokens",
        "uses",
    )

    conn: Conn
    n: int
    letters: tuple[int, ...]  # the answer's, over and over; named: n in base 26, last digit first
    connnum: int
    uses: int
    t_accept: int
    t_arrived: int
    t_request: int
    id: str | None
    kind: str  # "text" or "chat"
    prompt_head: str
    tokens: int
    per: int  # tokens in an event
    events: int
    k: int  # the next event
    blocked: int
    end: str | None
    t_done: int | None
    t_role: int | None
    t_send: array[int]
    due: array[int]  # empty in firehose mode
    fire: bool
    burst: int
    stall_at: int | None
    cut_at: int | None
    mid: list[bytes]
    last: list[bytes]
    tail: bytes

    def row(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "id": self.id,
            "prompt_head": self.prompt_head,
            "answer_head": "".join(LETTERS[digit] for digit in self.letters[:4]),
            "conn": self.connnum,
            "conn_use": self.uses,
            "t_accept": self.t_accept,
            "t_arrived": self.t_arrived,
            "t_request": self.t_request,
            "tokens": self.tokens,
            "per_event": self.per,
            "t_due": list(self.due),
            "t_send": list(self.t_send),
            "t_done": self.t_done,
            "t_role": self.t_role,
            "blocked": self.blocked,
            "end": self.end,
        }


class Server:
    """The server: one epoll loop, a heap of due tokens, a queue of firehose streams."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.sched = Schedule(a)
        self.model: str = a.model
        self.ev = Events(a.model)
        self.reqs: list[Req] = []
        self.conns: dict[int, Conn] = {}
        self.nconn = 0
        self.heap: list[tuple[int, int, Req]] = []
        self.fire: collections.deque[Req] = collections.deque()
        self.events_sent = 0
        self.stop = False
        self.lsock = socket.create_server((a.host, a.port), backlog=4096, reuse_port=False)
        self.lsock.setblocking(False)
        if sys.platform == "linux":  # accepted sockets inherit it
            self.lsock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.ep = select.epoll()
        self.ep.register(self.lsock.fileno(), select.EPOLLIN)

    # ---- the loop -------------------------------------------------------------------------
    def run(self) -> None:
        ep, heap, fire = self.ep, self.heap, self.fire
        epfd = ep.fileno()
        while not self.stop:
            if fire:
                wait = 0.0
            elif heap:
                wait = max(0.0, (heap[0][0] - now()) / 1e9)
            else:
                wait = 0.5
            # epoll_wait counts in whole ms; select() on the epoll descriptor counts in us.
            if wait:
                try:
                    select.select([epfd], [], [], min(wait, 0.5))
                except InterruptedError:
                    continue
            for fd, what in ep.poll(0):
                if fd == self.lsock.fileno():
                    self.accept()
                else:
                    c = self.conns.get(fd)
                    if c is not None:
                        self.ready(c, what)
            t = now()
            while heap and heap[0][0] <= t:
                self.step(heapq.heappop(heap)[2])
            for _ in range(len(fire)):
                r = fire.popleft()
                if self.pour(r):
                    fire.append(r)

    def accept(self) -> None:
        for _ in range(512):
            try:
                s, _ = self.lsock.accept()
            except BlockingIOError:
                return
            s.setblocking(False)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            c = Conn(s, self.nconn)
            self.nconn += 1
            self.conns[c.fd] = c
            self.ep.register(c.fd, select.EPOLLIN)

    def drop(self, c: Conn) -> None:
        if self.conns.pop(c.fd, None) is None:
            return
        self.ep.unregister(c.fd)
        c.sock.close()
        if c.req is not None:
            if c.req.end is None:
                c.req.end = "gone"
            c.req = None

    def ready(self, c: Conn, what: int) -> None:
        if what & select.EPOLLOUT:
            if not self.flush(c):
                return
            r = c.req
            if r is not None and c.fd in self.conns:  # a waiting stream continues
                if r.fire:
                    self.fire.append(r)
                else:
                    heapq.heappush(self.heap, (self.when(r), r.n, r))
        if what & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            try:
                data, ancillary, _, _ = c.sock.recvmsg(262144, 64)
                c.t_arrived = arrival(ancillary)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.drop(c)
                return
            c.buf += data
            if c.req is None:
                self.parse(c)

    # ---- sending --------------------------------------------------------------------------
    def send(self, c: Conn, data: bytes) -> bool:
        """True: the kernel has all of it. False: the rest waits for EPOLLOUT, or c is gone."""
        size, sent = self.sched.split or len(data), 0
        try:
            while sent < len(data):
                took = c.sock.send(data[sent : sent + size])
                sent += took
                if took < size:
                    break
        except BlockingIOError:
            pass
        except OSError:
            self.drop(c)
            return False
        if sent >= len(data):
            return True
        c.out = data[sent:]
        if c.req is not None:
            c.req.blocked += 1
        self.ep.modify(c.fd, select.EPOLLIN | select.EPOLLOUT)
        return False

    def flush(self, c: Conn) -> bool:
        if c.out:
            data, c.out = c.out, b""
            try:
                sent = c.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.drop(c)
                return False
            if sent != len(data):
                c.out = data[sent:]
                return False
        self.ep.modify(c.fd, select.EPOLLIN)
        if c.req is not None and c.req.k > c.req.events:
            self.finish(c.req)
            return False
        return True

    def when(self, r: Req) -> int:
        return r.due[min(r.k, r.events - 1)]

    def step(self, r: Req) -> None:
        """Timed mode: send token event k, and the tail after the last one."""
        c = r.conn
        if r.end is not None or c.out:
            return
        k = r.k
        if k == r.cut_at:
            r.end = "cut"
            self.drop(c)
            return
        if k == r.stall_at:
            r.end = "stalled"
            return
        if k == 0 and r.kind == "chat" and r.t_role is None:
            r.t_role = now()
            if not self.send(c, self.ev.role):
                return
        ok = True
        if k < r.events:
            data = (
                r.last[r.letters[k % len(r.letters)]]
                if k == r.events - 1
                else r.mid[r.letters[k % len(r.letters)]]
            )
            r.k = k + 1
            r.t_send.append(now())
            ok = self.send(c, data)
            self.events_sent += 1
        if not ok:  # the stream continues at EPOLLOUT
            return
        if r.k == r.events:
            r.t_done = now()
            r.k += 1
            if self.send(c, r.tail):
                self.finish(r)
        else:
            heapq.heappush(self.heap, (r.due[r.k], r.n, r))

    def pour(self, r: Req) -> bool:
        """Firehose: send the next `burst` events; True while there is more to send now."""
        c = r.conn
        if r.end is not None or c.out:
            return False
        k, end = r.k, min(r.k + r.burst, r.events)
        if r.cut_at is not None and k >= r.cut_at:
            r.end = "cut"
            self.drop(c)
            return False
        if k == 0 and r.kind == "chat" and r.t_role is None:
            r.t_role = now()
            if not self.send(c, self.ev.role):
                return False
        if k < r.events:
            events = [r.mid[r.letters[i % len(r.letters)]] for i in range(k, end)]
            if end == r.events:
                events[-1] = r.last[r.letters[(end - 1) % len(r.letters)]]
            data = events[0] if len(events) == 1 else b"".join(events)
            t = now()
            r.t_send.extend([t] * (end - k))
            r.k = end
            self.events_sent += end - k
            return self.send(c, data)
        r.t_done = now()
        r.k = r.events + 1
        if self.send(c, r.tail):
            self.finish(r)
        return False

    def finish(self, r: Req) -> None:
        c = r.conn
        r.end = r.end or "done"
        c.req = None
        if c.buf:
            self.parse(c)

    # ---- requests -------------------------------------------------------------------------
    def parse(self, c: Conn) -> None:
        i = c.buf.find(b"\r\n\r\n")
        if i < 0:
            return
        lines = bytes(c.buf[:i]).split(b"\r\n")
        head = {}
        for ln in lines[1:]:
            k, _, v = ln.partition(b":")
            head[k.strip().lower()] = v.strip()
        length = int(head.get(b"content-length", b"0"))
        if head.get(b"expect", b"").lower() == b"100-continue" and len(c.buf) == i + 4:
            c.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(c.buf) < i + 4 + length:
            return
        t = now()
        body = bytes(c.buf[i + 4 : i + 4 + length])
        del c.buf[: i + 4 + length]
        method, target = lines[0].split(b" ")[:2]
        path = target.split(b"?")[0].decode()
        if method == b"POST" and path in ("/v1/completions", "/v1/chat/completions"):
            self.generate(c, path, head, body, t)
        else:
            self.other(c, method, path, body)
        if c.fd in self.conns:
            c.uses += 1

    def reply(
        self, c: Conn, body: bytes, status: str = "200 OK", kind: str = "application/json"
    ) -> None:
        self.send(
            c,
            b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (status.encode(), kind.encode(), len(body), body),
        )

    def other(self, c: Conn, method: bytes, path: str, body: bytes) -> None:
        if path in ("/health", "/metrics", "/ping"):
            self.reply(c, b"", kind="text/plain")
        elif path == "/version":
            self.reply(c, b'{"version":"truth"}')
        elif path == "/v1/models":
            about = {"id": self.model, "object": "model", "created": 1700000000}
            about |= {"owned_by": "truth", "max_model_len": 131072}
            self.reply(c, json.dumps({"object": "list", "data": [about]}).encode())
        elif path == "/truth":
            self.reply(c, self.dump(), kind="application/x-ndjson")
        elif path == "/stats":
            cpu = os.times()
            stats = {
                "cpu_s": cpu.user + cpu.system,
                "requests": len(self.reqs),
                "t": now(),
                "connections": self.nconn,
                "events_sent": self.events_sent,
            }
            self.reply(c, json.dumps(stats).encode())
        elif path == "/control" and method == b"POST":
            try:
                fields = json.loads(body or b"{}")
                self.sched.set(fields)
                if fields.get("reset"):
                    self.reqs = []
                    self.events_sent = 0
                self.reply(c, json.dumps(self.sched.__dict__).encode())
            except (ValueError, TypeError) as e:
                self.reply(c, json.dumps({"error": str(e)}).encode(), "400 Bad Request")
        else:
            self.reply(c, b'{"error":"not found"}', "404 Not Found")

    def generate(self, c: Conn, path: str, head: dict[bytes, bytes], body: bytes, t: int) -> None:
        s = self.sched
        try:
            q = json.loads(body)
        except ValueError:
            self.reply(c, b'{"error":"bad json"}', "400 Bad Request")
            return
        r = Req()
        r.conn, r.connnum, r.uses, r.t_accept = c, c.num, c.uses, c.t_accept
        r.n, r.t_request = len(self.reqs), t
        r.letters = tuple(r.n // 26**place % 26 for place in range(4)) if s.named else ALPHABET
        r.id = head[b"x-request-id"].decode() if b"x-request-id" in head else None
        r.kind = "chat" if path.endswith("chat/completions") else "text"
        prompt = q.get("prompt", "")
        if r.kind == "chat":
            prompt = q["messages"][-1].get("content", "") if q.get("messages") else ""
        if isinstance(prompt, list):
            is_parts = bool(prompt) and isinstance(prompt[0], dict)
            prompt = prompt[0].get("text", "") if is_parts else str(prompt)
        r.prompt_head = str(prompt)[:64]
        r.tokens = max(1, int(q.get("max_completion_tokens") or q.get("max_tokens") or 16))
        r.per = max(1, s.per_event)
        r.events = -(-r.tokens // r.per)
        r.k, r.blocked, r.end, r.t_done, r.t_role = 0, 0, None, None, None
        r.t_send, r.due = array("q"), array("q")
        r.fire, r.burst = s.firehose, max(1, s.burst)
        r.t_arrived = c.t_arrived or t
        r.stall_at = r.events // 2 if s.stall_every and (r.n + 1) % s.stall_every == 0 else None
        r.cut_at = r.events // 2 if s.cut_every and (r.n + 1) % s.cut_every == 0 else None
        self.reqs.append(r)
        if s.fail_every and (r.n + 1) % s.fail_every == 0:
            r.end = "failed"
            self.reply(
                c,
                b'{"error":{"message":"made to fail","type":"server_error","code":500}}',
                "500 Internal Server Error",
            )
            return
        usage = {
            "prompt_tokens": len(str(prompt)),
            "completion_tokens": r.tokens,
            "total_tokens": len(str(prompt)) + r.tokens,
        }
        r.mid, r.last = self.ev.of(r.kind, r.per)
        if not q.get("stream"):
            self.whole(c, r, usage)
            return
        r.tail = b""
        if (q.get("stream_options") or {}).get("include_usage"):
            end = f'{self.ev.heads[r.kind]}],"usage":{json.dumps(usage)}}}'
            r.tail = framed(end.encode())
        r.tail += framed(b"[DONE]") + b"0\r\n\r\n"
        # Due times are fixed now, from the arrival: a late token does not push the next ones.
        rng, ttft, itl = random.Random(s.seed * 1_000_003 + r.n), s.ttft_ms * MS, s.itl_ms * MS
        if not r.fire:
            at = t + int(ttft)
            for _ in range(r.events):
                r.due.append(-(-at // int(itl)) * int(itl) if s.grid and itl else at)
                at += int(itl * (1 + s.jitter * rng.uniform(-1, 1)))
        c.req = r
        rid = b"x-request-id: %s\r\n" % head[b"x-request-id"] if r.id else b""
        ok = self.send(
            c,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache\r\n%stransfer-encoding: chunked\r\n\r\n" % rid,
        )
        if ok and s.role_early and r.kind == "chat":
            r.t_role = now()
            ok = self.send(c, self.ev.role)
        if ok:
            if r.fire:
                self.fire.append(r)
            else:
                heapq.heappush(self.heap, (r.due[0], r.n, r))

    def whole(self, c: Conn, r: Req, usage: dict[str, int]) -> None:
        """stream=false: the whole body at once (no schedule; not meant for timing)."""
        text = "".join(LETTERS[r.letters[i % len(r.letters)]] * r.per for i in range(r.events))[
            : r.tokens
        ]
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        if r.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        r.t_send.append(now())
        r.t_done, r.end = r.t_send[0], "done"
        answer = {
            "id": "cmpl-0",
            "object": "chat.completion" if r.kind == "chat" else "text_completion",
            "created": 1700000000,
            "model": self.model,
            "usage": usage,
            "choices": [choice],
        }
        self.reply(c, json.dumps(answer).encode())

    def dump(self) -> bytes:
        return b"".join(json.dumps(r.row()).encode() + b"\n" for r in self.reqs)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument(
        "--port", type=int, default=8100, help="0: any free port; the first line of stderr names it"
    )
    p.add_argument("--model", default="truth")
    p.add_argument("--ttft-ms", type=float, default=50.0)
    p.add_argument("--itl-ms", type=float, default=10.0)
    p.add_argument(
        "--jitter", type=float, default=0.0, help="0.2: each interval is ITL × (0.8 to 1.2)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--grid",
        action="store_true",
        help="all streams send on one common ITL grid, as an engine steps",
    )
    p.add_argument("--firehose", action="store_true")
    p.add_argument("--burst", type=int, default=1, help="firehose: SSE events in one send")
    p.add_argument(
        "--per-event",
        type=int,
        default=1,
        help="tokens in one SSE event (as speculative decoding does)",
    )
    p.add_argument("--role-early", action="store_true")
    p.add_argument("--fail-every", type=int, default=0)
    p.add_argument("--cut-every", type=int, default=0)
    p.add_argument("--stall-every", type=int, default=0, help="timed mode only")
    p.add_argument("--named", action="store_true")
    p.add_argument("--split", type=int, default=0)
    p.add_argument("--truth-file", default=None, help="JSON lines, written at SIGTERM or SIGINT")
    a = p.parse_args()
    srv = Server(a)

    def halt(*_: object) -> None:
        srv.stop = True

    signal.signal(signal.SIGTERM, halt)
    signal.signal(signal.SIGINT, halt)
    print(
        f"truth_server on {a.host}:{srv.lsock.getsockname()[1]} pid {os.getpid()}",
        file=sys.stderr,
        flush=True,
    )
    gc.disable()  # collecting the many small records would show up as a late send
    srv.run()
    if a.truth_file:
        with open(a.truth_file, "wb") as f:
            f.write(srv.dump())


if __name__ == "__main__":
    main()
