"""Endpoints of Starlette and FastAPI: over real HTTP, streamed, left by the client, failing, and many at once."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse as FastAPIStreamingResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate

from .conftest import Sink

WIDE, OUT = 16, 8
ROW = 2 * WIDE * OUT
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


class Prompt(BaseModel):
    rows: int


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(WIDE, OUT, bias=False)


def call(model: nn.Module, rows: int) -> None:
    with torch.no_grad():
        model(torch.zeros(rows, WIDE))


@contextmanager
def served(app: object) -> Iterator[str]:
    """`app` behind a real server on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none"))  # type: ignore[arg-type]  # an ASGI application
    started = threading.Event()
    startup = server.startup

    async def announced(sockets: object = None) -> None:
        await startup(sockets)  # type: ignore[arg-type]  # what it was called with
        started.set()

    server.startup = announced  # type: ignore[method-assign,assignment]  # says when there is a port to ask
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(timeout=120)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=120)
        assert not thread.is_alive()


def test_twenty_at_once(model: nn.Module, sink: Sink) -> None:
    """Plain endpoints, which Starlette runs in its threads, and coroutine ones: each request has its own FLOPs."""

    @mfu.inference(model, name="plain", peaks=PEAKS)
    def plain(request: Request) -> JSONResponse:
        rows = int(request.query_params["rows"])
        call(model, rows)
        return JSONResponse({"rows": rows})

    @mfu.inference(model, name="coroutine", peaks=PEAKS)
    async def coroutine(request: Request) -> JSONResponse:
        rows = (await request.json())["rows"]
        await asyncio.to_thread(call, model, rows)
        await asyncio.sleep(0)
        call(model, 1)
        return JSONResponse({"rows": rows})

    app = Starlette(routes=[Route("/plain", plain), Route("/coroutine", coroutine, methods=["POST"])])

    async def ask(base: str) -> list[int]:
        async with httpx.AsyncClient(base_url=base, timeout=300) as client:
            gets = [client.get("/plain", params={"rows": rows}) for rows in range(1, 21)]
            posts = [client.post("/coroutine", json={"rows": rows}) for rows in range(1, 21)]
            return [answer.json()["rows"] for answer in await asyncio.gather(*gets, *posts)]

    with served(app) as base:
        assert asyncio.run(ask(base)) == [*range(1, 21)] * 2
    plain.run.close()
    coroutine.run.close()
    of = {name: [r for r in sink.requests if r.name == name] for name in ("plain", "coroutine")}
    assert sorted(r.model_flops or 0 for r in of["plain"]) == [rows * ROW for rows in range(1, 21)]
    assert sorted(r.model_flops or 0 for r in of["coroutine"]) == [(rows + 1) * ROW for rows in range(1, 21)]
    assert sum(s.model_flops or 0 for s in sink.steps) == sum(r.model_flops or 0 for r in sink.requests)
    assert sum(s.requests or 0 for s in sink.steps) == 40


@pytest.mark.parametrize("kind", ["generator", "async generator", "endpoint"])
def test_streaming(kind: str, model: nn.Module, sink: Sink) -> None:
    """A streamed answer is one request from its first chunk to its last, whichever part of it is decorated."""

    def generator(rows: int) -> Iterator[str]:
        for _ in range(rows):
            call(model, rows)
            yield "chunk "

    async def streaming(rows: int) -> AsyncIterator[str]:
        for _ in range(rows):
            call(model, rows)
            yield "chunk "
            await asyncio.sleep(0)

    decorate = mfu.inference(model, name=kind, tokens=lambda chunk: 1, peaks=PEAKS)
    sync_stream = decorate(generator) if kind == "generator" else generator
    async_stream = decorate(streaming) if kind == "async generator" else streaming

    def answer(request: Request) -> StreamingResponse:
        rows = int(request.query_params["rows"])
        return StreamingResponse(async_stream(rows) if kind == "async generator" else sync_stream(rows))

    endpoint = decorate(answer) if kind == "endpoint" else answer
    app = Starlette(routes=[Route("/", endpoint)])

    async def ask(base: str) -> list[str]:
        async with httpx.AsyncClient(base_url=base, timeout=300) as client:
            gets = [client.get("/", params={"rows": rows}) for rows in (1, 2, 3)]
            return [answer.text for answer in await asyncio.gather(*gets)]

    with served(app) as base:
        assert asyncio.run(ask(base)) == ["chunk " * rows for rows in (1, 2, 3)]
    handled = {"generator": sync_stream, "async generator": async_stream, "endpoint": endpoint}[kind]
    handled.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert sorted(r.model_flops or 0 for r in sink.requests) == [ROW, 4 * ROW, 9 * ROW]
    assert sorted(r.output_tokens or 0 for r in sink.requests) == sorted(r.chunks or 0 for r in sink.requests)
    assert {r.outcome for r in sink.requests} == {"finished"}
    assert sum(s.tokens or 0 for s in sink.steps) == 6


@pytest.mark.parametrize("kind", ["async generator", "endpoint", "generator"])
def test_a_client_that_leaves(kind: str, model: nn.Module, sink: Sink) -> None:
    """A client that hangs up in the middle of a stream ends its request, which has then been cancelled."""
    ended = threading.Event()

    def generator(request: Request) -> Iterator[str]:
        try:
            while True:
                call(model, 1)
                yield "x" * 65536
        finally:
            ended.set()

    async def streaming(request: Request) -> AsyncIterator[str]:
        try:
            while True:
                call(model, 1)
                yield "x" * 65536
                await asyncio.sleep(0)
        finally:
            ended.set()

    decorate = mfu.inference(model, name=kind, peaks=PEAKS)
    sync_stream = decorate(generator) if kind == "generator" else generator
    async_stream = decorate(streaming) if kind == "async generator" else streaming

    def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(sync_stream(request) if kind == "generator" else async_stream(request))

    endpoint = decorate(answer) if kind == "endpoint" else answer

    with served(Starlette(routes=[Route("/", endpoint)])) as base:
        with httpx.stream("GET", base, timeout=300) as answered:
            assert len(next(answered.iter_raw())) > 0
        if kind != "generator":
            assert ended.wait(timeout=120)
    # Nobody closes a plain generator: the thread that ran it last holds it until it has other work, or ends.
    gc.collect()
    assert ended.wait(timeout=120)
    handled = {"generator": sync_stream, "async generator": async_stream, "endpoint": endpoint}[kind]
    handled.run.close()  # type: ignore[attr-defined]  # set by the decorator
    [request] = sink.requests
    assert (request.outcome, request.error_type) == ("cancelled", None)
    assert request.model_flops == request.model_calls * ROW > 0
    assert sum(s.requests_failed or 0 for s in sink.steps) == 0


def test_a_stream_that_fails(model: nn.Module, sink: Sink) -> None:
    """An exception in the middle of a stream is the request's failure, and reaches the server as it was."""

    @mfu.inference(model, peaks=PEAKS)
    async def stream() -> AsyncIterator[str]:
        call(model, 2)
        yield "chunk "
        raise LookupError("mine")

    async def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(stream())

    async def ask() -> None:
        transport = httpx.ASGITransport(Starlette(routes=[Route("/", answer)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await client.get("/")

    with pytest.raises(LookupError, match="mine"):
        asyncio.run(ask())
    stream.run.close()
    [request] = sink.requests
    assert (request.outcome, request.error_type, request.model_flops) == ("failed", "LookupError", 2 * ROW)


def test_fastapi(model: nn.Module, sink: Sink) -> None:
    """FastAPI reads parameters off the signature and validates by it: bodies, queries, plain, async and streamed."""
    app = FastAPI()

    @app.post("/body")
    @mfu.inference(model, name="body", tokens=lambda out: (out["in"], out["out"]), peaks=PEAKS)
    async def body(prompt: Prompt, twice: bool = False) -> dict[str, int]:
        call(model, prompt.rows * (2 if twice else 1))
        return {"in": prompt.rows, "out": 1}

    @app.get("/plain")
    @mfu.inference(model, name="plain", peaks=PEAKS)
    def plain(rows: int) -> int:
        call(model, rows)
        return rows

    @app.get("/stream")
    @mfu.inference(model, name="stream", peaks=PEAKS)
    async def stream(rows: int) -> FastAPIStreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for _ in range(rows):
                call(model, 1)
                yield json.dumps({"rows": rows}) + "\n"

        return FastAPIStreamingResponse(lines())

    with served(app) as base, httpx.Client(base_url=base, timeout=300) as client:
        assert client.post("/body?twice=1", json={"rows": 3}).json() == {"in": 3, "out": 1}
        assert client.post("/body", json={"rows": "three"}).status_code == 422
        assert client.get("/plain", params={"rows": 4}).json() == 4
        assert client.get("/plain").status_code == 422
        assert len(client.get("/stream", params={"rows": 5}).text.splitlines()) == 5
    for handled in (body, plain, stream):
        handled.run.close()
    told = {r.name: (r.model_flops, r.input_tokens, r.output_tokens, r.tokens, r.outcome) for r in sink.requests}
    assert told == {
        "body": (6 * ROW, 3, 1, 4, "finished"),
        "plain": (4 * ROW, None, None, None, "finished"),
        "stream": (5 * ROW, None, None, None, "finished"),
    }
    # Of what does not validate the handler is never asked.
    assert len(sink.requests) == 3
