"""The built-in engine's API server: vLLM's routes, and token streams from the engine's thread to
the clients."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from core.builtin import protocol
from core.builtin.engine import Delta, Engine
from core.builtin.protocol import (
    ChatReply,
    ChatRequest,
    CompletionReply,
    CompletionRequest,
    Json,
    RefusedError,
    Reply,
    StreamOptions,
    TokenizeRequest,
    UnauthorizedError,
    Usage,
)
from core.builtin.scheduler import Request, Sequence

Asked = TypeVar("Asked", CompletionRequest, ChatRequest, TokenizeRequest)

JSON_TYPE = "application/json"
STOPPED = "The engine has stopped."


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes report about the server."""

    model: str
    max_model_len: int
    api_key: str  # "": none is required
    version: Json  # the answer of /version


class App:
    """The routes of one engine, and a queue for every open request."""

    def __init__(self, service: Service, engine: Engine, on_death: Callable[[], None]) -> None:
        self.service, self.engine = service, engine
        self._on_death = on_death
        self._queues: dict[Sequence, asyncio.Queue[Delta | None]] = {}
        self._created = int(time.time())

    def starlette(self) -> Starlette:
        """The ASGI application, which starts the engine and stops it with the server."""
        routes = [
            Route("/health", self.health),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                RefusedError: _refuse,
                HTTPException: _refuse_http,
                ClientDisconnect: _forget,
            },
        )

    async def health(self, request: HttpRequest) -> Response:
        """200 while the engine runs, else 503."""
        return Response(status_code=200 if self.engine.is_alive else 503)

    async def version(self, request: HttpRequest) -> Response:
        """GET /version: what runs."""
        return _json(self.service.version)

    async def metrics(self, request: HttpRequest) -> Response:
        """GET /metrics, in Prometheus' text format."""
        return Response(
            self.engine.metrics.render(self.service.model), media_type="text/plain; version=0.0.4"
        )

    async def tokenize(self, request: HttpRequest) -> Response:
        """POST /tokenize; as in vLLM, it requires no key."""
        asked = _decode(await request.body(), TokenizeRequest)
        self._check_model(asked.model)
        return _json(asked.answer(self.service.max_model_len))

    async def models(self, request: HttpRequest) -> Response:
        """GET /v1/models: the one model."""
        self._authorize(request)
        model = {
            "id": self.service.model,
            "object": "model",
            "created": self._created,
            "owned_by": "gatescope",
            "root": self.service.model,
            "parent": None,
            "max_model_len": self.service.max_model_len,
        }
        return _json({"object": "list", "data": [model]})

    async def completions(self, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        self._authorize(request)
        asked = _decode(await request.body(), CompletionRequest)
        return self._generate(request, asked, asked.max_tokens, CompletionReply)

    async def chat(self, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        self._authorize(request)
        asked = _decode(await request.body(), ChatRequest)
        return self._generate(
            request, asked, asked.max_completion_tokens or asked.max_tokens, ChatReply
        )

    def _authorize(self, request: HttpRequest) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        wanted = self.service.api_key
        if wanted and not (
            scheme.lower() == "bearer" and secrets.compare_digest(key.encode(), wanted.encode())
        ):
            raise UnauthorizedError

    def _check_model(self, model: str | None) -> None:
        if model and model != self.service.model:
            raise RefusedError(404, "NotFoundError", f"The model `{model}` does not exist.")

    def _generate(
        self,
        http: HttpRequest,
        asked: CompletionRequest | ChatRequest,
        max_tokens: int | None,
        reply_type: type[CompletionReply] | type[ChatReply],
    ) -> Response:
        """The answer to a request. RefusedError if it is not valid."""
        if not self.engine.is_alive:
            raise RefusedError(503, "ServiceUnavailableError", STOPPED)
        self._check_model(asked.model)
        prompt = asked.tokens(self.engine.model.shape.vocab)
        sampling = asked.sampling(len(prompt), max_tokens, self.service.max_model_len)
        request_id = reply_type.PREFIX + (http.headers.get("x-request-id") or uuid.uuid4().hex)
        request = Request(request_id, protocol.segment(request_id), tuple(prompt), sampling)
        reply = reply_type(request_id, self.service.model, int(time.time()))
        if not asked.stream:
            return WholeAnswer(self, request, reply)
        return TokenStream(self, request, reply, asked.stream_options or StreamOptions())

    async def follow(self, request: Request, receive: Receive) -> AsyncGenerator[Delta]:
        """Submit the request; yield its deltas until it ends or its client disconnects."""
        sequence = self.engine.submit(request)
        queue = self._queues[sequence] = asyncio.Queue()
        watch = asyncio.create_task(_disconnected(receive))
        watch.add_done_callback(lambda _: queue.put_nowait(None))
        finished = False
        try:
            while not finished and (delta := await queue.get()):
                finished = delta.finish_reason is not None
                yield delta
        finally:
            watch.cancel()
            del self._queues[sequence]
            if not finished:
                self.engine.abort(sequence)

    def _push(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if queue := self._queues.get(delta.sequence):
                queue.put_nowait(delta)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self.engine.start(
            deliver=lambda deltas: loop.call_soon_threadsafe(self._push, deltas),
            on_death=self._on_death,
        )
        try:
            yield
        finally:
            self.engine.stop()
            await asyncio.to_thread(self.engine.join)


class WholeAnswer(Response):
    """The answer in one piece, after the last token."""

    def __init__(self, app: App, request: Request, reply: Reply) -> None:
        super().__init__()
        self.app, self.request, self.reply = app, request, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        deltas = [delta async for delta in self.app.follow(self.request, receive)]
        if not deltas or not deltas[-1].finish_reason:  # the client has disconnected
            return
        last = deltas[-1]
        if last.finish_reason == "abort":
            answer = _json(RefusedError(503, "ServiceUnavailableError", STOPPED).body(), 503)
        else:
            usage = Usage(len(self.request.prompt), last.sequence.generated)
            text = "".join(delta.text for delta in deltas)
            answer = _json(self.reply.whole(text, last.finish_reason, last.stop_reason, usage))
        await answer(scope, receive, send)


class TokenStream(Response):
    """One server-sent event per token, each written separately as soon as its step has ended.

    Starlette's StreamingResponse needs a task group per response and twice the time per event.
    """

    media_type = "text/event-stream; charset=utf-8"

    def __init__(self, app: App, request: Request, reply: Reply, options: StreamOptions) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.app, self.request, self.reply, self.options = app, request, reply, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if opening := self.reply.opening():
            await _send(send, protocol.event(opening))
        tokens = 0
        finish = None
        async with contextlib.aclosing(self.app.follow(self.request, receive)) as deltas:
            async for delta in deltas:
                tokens += 1
                finish = delta.finish_reason
                if finish != "abort":
                    await _send(send, self._event(delta, tokens))
        if finish:
            await _send(send, self._end(tokens, finish), more=False)

    def _event(self, delta: Delta, tokens: int) -> bytes:
        continuous = self.options.include_usage and self.options.continuous_usage_stats
        usage = Usage(len(self.request.prompt), tokens) if continuous else None
        return protocol.event(
            self.reply.chunk(delta.text, delta.finish_reason, delta.stop_reason, usage)
        )

    def _end(self, tokens: int, finish: str) -> bytes:
        if finish == "abort":
            error = RefusedError(503, "ServiceUnavailableError", STOPPED)
            return protocol.event(error.body()) + protocol.DONE
        if not self.options.include_usage:
            return protocol.DONE
        usage = Usage(len(self.request.prompt), tokens)
        return protocol.event(self.reply.closing(usage)) + protocol.DONE


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _decode(body: bytes, kind: type[Asked]) -> Asked:
    """The request in the body. RefusedError if it is not valid."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as wrong:
        raise RefusedError(400, "BadRequestError", str(wrong)) from None


async def _refuse(request: HttpRequest, refused: Exception) -> Response:
    assert isinstance(refused, RefusedError)
    return _json(refused.body(), refused.code)


async def _refuse_http(request: HttpRequest, error: Exception) -> Response:
    """Answer a wrong route or method in vLLM's form."""
    assert isinstance(error, HTTPException)
    refused = RefusedError(error.status_code, HTTPStatus(error.status_code).phrase, error.detail)
    return Response(msgspec.json.encode(refused.body()), refused.code, error.headers, JSON_TYPE)


async def _forget(request: HttpRequest, gone: Exception) -> Response:
    """The client disconnected before its whole request was here: nobody reads this answer."""
    return Response(status_code=499)


def _json(data: Json, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type=JSON_TYPE)
