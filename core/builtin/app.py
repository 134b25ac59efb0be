"""The web side of the built-in engine: vLLM's routes, and token streams from the engine's thread to its clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from starlette.applications import Starlette
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
    Usage,
)
from core.builtin.scheduler import Request, Sequence


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes tell about the server."""

    model: str
    max_model_len: int
    api_key: str  # "": none is asked for
    version: Json  # the answer of /version


class App:
    """The routes of one engine, and the queue of every open request."""

    def __init__(self, service: Service, engine: Engine, on_death: Callable[[], None]) -> None:
        self.service, self.engine = service, engine
        self._on_death = on_death
        self._queues: dict[Sequence, asyncio.Queue[Delta | None]] = {}
        self._created = int(time.time())

    def starlette(self) -> Starlette:
        """The ASGI application; it starts the engine, and ends it with the server."""
        routes = [
            Route("/health", self.health),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={RefusedError: _refuse})

    async def health(self, request: HttpRequest) -> Response:
        """200 while the engine lives."""
        return Response(status_code=200 if self.engine.is_alive else 503)

    async def version(self, request: HttpRequest) -> Response:
        """What runs."""
        return _json(self.service.version)

    async def metrics(self, request: HttpRequest) -> Response:
        """Prometheus' text."""
        return Response(self.engine.metrics.render(self.service.model), media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        """The one model."""
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
        return self._generate(request, asked, asked.max_completion_tokens or asked.max_tokens, ChatReply)

    def _authorize(self, request: HttpRequest) -> None:
        key = self.service.api_key
        if key and request.headers.get("authorization") != f"Bearer {key}":
            raise RefusedError(401, "AuthenticationError", "Unauthorized")

    def _generate(
        self,
        http: HttpRequest,
        asked: CompletionRequest | ChatRequest,
        max_tokens: int | None,
        reply_type: type[CompletionReply] | type[ChatReply],
    ) -> Response:
        """The answer to a valid request. RefusedError for any other."""
        model = asked.model or self.service.model
        if model != self.service.model:
            raise RefusedError(404, "NotFoundError", f"The model `{model}` does not exist.")
        prompt = asked.tokens(self.engine.model.shape.vocab)
        sampling = asked.sampling(len(prompt), max_tokens, self.service.max_model_len)
        request_id = reply_type.PREFIX + (http.headers.get("x-request-id") or uuid.uuid4().hex)
        request = Request(request_id, protocol.segment(request_id), tuple(prompt), sampling)
        reply = reply_type(request_id, model, int(time.time()))
        if not asked.stream:
            return WholeAnswer(self, request, reply)
        return TokenStream(self, request, reply, asked.stream_options or protocol.StreamOptions())

    async def follow(self, request: Request, receive: Receive) -> AsyncIterator[Delta]:
        """Submit the request; its deltas, until it has ended or its client has gone."""
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
            deliver=lambda deltas: _call(loop, self._push, deltas),
            on_death=self._on_death,
        )
        try:
            yield
        finally:
            self.engine.stop()
            await asyncio.to_thread(self.engine.join)
