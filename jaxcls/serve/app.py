"""The routes: what is asked over HTTP, and what is answered.

Every body has a limit, every request a time, every image a number of pixels, and what is held at
once a number and a size: what is beyond is told so, with a status and a reason in JSON. No path
leads to a file, and nothing that was sent is executed.
"""

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import jaxcls
from jaxcls.exported import Exported
from jaxcls.predict import as_json
from jaxcls.predictor import Predictor
from jaxcls.serve import forms, images, protocol
from jaxcls.serve.batching import Admission, Batcher, Busy, Failed, Held, Workers
from jaxcls.serve.connections import REFUSED
from jaxcls.serve.openapi import OPENAPI

PAGE = Path(__file__).with_name("page.html").read_text()
FIELDS = 64  # parts of a form besides images
HEADERS = 100  # of a request
EXPLAINED = 4  # images at once whose pictures are made or waited for
STOPPING = 10  # seconds for what is still to be computed
REASON = 500  # characters of an error, at most
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # of batches
SAFE = {  # no browser takes an answer for something else, and the page loads nothing
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
}


class Limits(NamedTuple):
    """What a request may be, and all together."""

    body: int  # bytes
    pixels: int  # of an image
    images: int  # of a request
    seconds: float  # until it is sent and answered
    requests: int  # images held at once
    memory: int  # bytes of all bodies that are held at once


class Model:
    """A network that is served."""

    def __init__(self, name: str, predictor: Predictor, wait: float, watch: Callable[..., None]):
        self.name, self.predictor, self._explaining = name, predictor, threading.Lock()
        self.decoding = 0  # images that will be submitted
        self.batcher = Batcher(
            predictor.probabilities,
            batch_size=predictor.batch_size,
            wait=wait,
            watch=watch,
            coming=lambda: self.decoding,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of images that are preprocessed."""
        image = self.predictor.network.image
        return image.shown, image.shown, image.channels

    def warm_up(self) -> None:
        """Compiles what requests will need: a batch of each size."""
        views, size = self.predictor.blank, 1
        while size <= self.predictor.batch_size:
            self.predictor.probabilities([views] * size)
            size *= 2

    def explain(self, data: bytes) -> bytes:
        """Returns a JPEG of where the network looked.

        Raises:
          ValueError: it is an export, or the image cannot be read.
        """
        if isinstance(self.predictor.network, Exported):  # its own words have its path
            raise ValueError(f"{self.name} is an export, which cannot say where it looked")
        with self._explaining:  # its memory once
            [picture] = self.predictor.pictures([data])
        return picture


class Server:
    """What the routes share."""

    def __init__(self, predictors: Mapping[str, Predictor], limits: Limits, *, wait: float = 0.002):
        """Takes networks by name; the first is the one that is asked where no name is given."""
        self.limits, self.admission = limits, Admission(limits.requests, limits.memory)
        self.explaining = Admission(EXPLAINED, limits.memory)
        self.registry, self.ready = CollectorRegistry(), False
        ProcessCollector(registry=self.registry)  # memory, file descriptors, processor seconds
        metric = {"registry": self.registry}
        self.requests = Counter("jaxcls_requests", "Requests", ("route", "status"), **metric)
        self.seconds = Histogram(
            "jaxcls_request_seconds", "Until the answer", ("route",), buckets=BUCKETS, **metric
        )
        self.batches = Histogram(
            "jaxcls_batch_images", "Images computed together", ("model",), buckets=SIZES, **metric
        )
        self.computing = Histogram(
            "jaxcls_batch_seconds", "Of a batch", ("model",), buckets=BUCKETS, **metric
        )
        for name, text, value in (
            ("requests", "Requests that wait for an answer", lambda: self.admission.requests),
            ("images", "Images that wait for an answer", lambda: self.admission.images),
            ("bytes", "Bytes of their files", lambda: self.admission.bytes),
        ):
            Gauge(f"jaxcls_held_{name}", text, **metric).set_function(value)
        self.models = {
            name: Model(name, p, wait, self._watch(name)) for name, p in predictors.items()
        }
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.workers, self.painter = Workers(count, "decode"), Workers(1, "explain")

    def _watch(self, name: str) -> Callable[[int, float], None]:
        sizes, seconds = self.batches.labels(name), self.computing.labels(name)
        return lambda size, took: (sizes.observe(size), seconds.observe(took))

    # -- What routes need --------------------------------------------------------------------------

    def model(self, name: str | None) -> Model:
        """Returns a model by its name; the first without one."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HTTPException(404, f"no model {name[:80]!r}: {', '.join(self.models)}")
        return self.models[name]

    async def body(self, request: Request, held: Held) -> bytes:
        """Returns the body of a request, if it is not too long."""
        coding = request.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise HTTPException(415, f"content-encoding: {coding[:40]}: send it as it is")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limits.body:
            raise HTTPException(413, f"{declared[:20]} bytes, more than {self.limits.body:,}")
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body:
                raise HTTPException(413, f"more than {self.limits.body:,} bytes")
            held.take(size=len(part))
            parts.append(part)
        return b"".join(parts)

    async def probabilities(self, model: Model, file: bytes | str) -> np.ndarray:
        """Returns what a model says of an image's file, [K]; a text is base64."""

        def views() -> Any:
            data = protocol.decode_base64(file) if isinstance(file, str) else file
            images.check(data, self.limits.pixels)
            try:
                return model.predictor.views(data, "image")
            except ValueError as error:
                raise ValueError(str(error).removeprefix("image: ")) from error

        model.decoding += 1
        try:
            found = await self.workers.run(views)
        finally:
            model.decoding -= 1
        return await model.batcher.submit(found)

    async def several(self, model: Model, files: Sequence[bytes | str]) -> list[Any]:
        """Returns the rows of images, or what is wrong with them, in their order."""
        tasks = [asyncio.ensure_future(self.probabilities(model, data)) for data in files]
        try:
            found = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, ValueError):
                raise error
        return found

    def take(self, held: Held, count: int) -> None:
        """Holds the images of a request."""
        if count > self.limits.images:
            raise HTTPException(413, f"{count} images, more than {self.limits.images}")
        held.take(images=max(count, 1) - held.images)

    def route(self, name: str, answer: Callable[..., Any]) -> Callable[[Request], Any]:
        """Returns a route that is admitted, timed, counted, and whose errors are JSON.

        Args:
          name: of it, in metrics.
          answer: is given the request, its body, and what is held for it; returns the response.
        """

        async def run(request: Request) -> Response:
            begun, read = time.perf_counter(), False
            try:
                if len(request.headers.raw) > HEADERS:
                    raise HTTPException(431, f"more than {HEADERS} headers")
                async with asyncio.timeout(self.limits.seconds):
                    with self.admission.admitted() as held:
                        body = await self.body(request, held)
                        read = True
                        response = await _while_there(request, answer(request, body, held))
            except HTTPException as error:
                response = refused(error.status_code, str(error.detail))
            except (Busy, MemoryError) as error:
                request.scope[REFUSED] = True
                response = refused(503, str(error) or "out of memory")
            except TimeoutError:
                sent = f"no answer within {self.limits.seconds:g} s"
                slow = f"the body was not sent within {self.limits.seconds:g} s"
                response = refused(503, sent) if read else refused(408, slow)
            except ValueError as error:
                response = refused(400, str(error))
            except ClientDisconnect:
                response = Response(status_code=499)
            except Failed as error:  # it is logged there, once for its batch
                response = refused(500, str(error))
            except Exception as error:
                logging.getLogger(__name__).exception("%s failed", name)
                response = refused(500, f"this failed: {type(error).__name__}")
            self.requests.labels(name, response.status_code).inc()
            self.seconds.labels(name).observe(time.perf_counter() - begun)
            return response

        return run

    # -- Routes ------------------------------------------------------------------------------------

    async def predict(self, request: Request, body: bytes, held: Held) -> Response:
        """POST /predict: images in a form, as JSON with base64, or one as it is."""
        top = request.query_params.get("top", "5")
        if not (top.isdecimal() and 0 < len(top) < 10 and int(top) > 0):
            raise ValueError(f"top={top[:20]!r}: write a number of at least 1")
        model = self.model(request.query_params.get("model"))
        kind = request.headers.get("content-type", "")
        media = kind.partition(";")[0].strip().lower()
        if media == "multipart/form-data":
            files = forms.files(body, kind, self.limits.images + FIELDS)
        elif media == "application/json":
            files = await self.workers.run(of_json, body)
        else:
            files = [("image", body)]
        self.take(held, len(files))
        rows = await self.several(model, [data for _, data in files])
        answers = []
        for (name, _), row in zip(files, rows, strict=True):
            if isinstance(row, ValueError):
                answers.append({"image": name, "error": str(row)[:REASON]})
            else:
                answers.append(as_json(model.predictor.answer(name, row, int(top))))
        if len(answers) == 1 and "error" in answers[0]:
            raise ValueError(answers[0]["error"])
        return JSONResponse({"model": model.name, "predictions": answers}, headers=SAFE)

    async def explain(self, request: Request, body: bytes, held: Held) -> Response:
        """POST /explain: an image as it is; a JPEG of where the network looked."""
        model = self.model(request.query_params.get("model"))

        def picture() -> bytes:
            images.check(body, self.limits.pixels)
            return model.explain(body)

        with self.explaining.admitted():  # it takes far longer: so that others can be answered
            found = await self.painter.run(picture)
        return Response(found, media_type="image/jpeg")

    async def infer(self, request: Request, body: bytes, held: Held) -> Response:
        """POST /v2/models/NAME/infer."""
        model = self.model(request.path_params["model"])
        header = request.headers.get(protocol.HEADER)
        asked = await self.workers.run(
            protocol.parse, body, header, model.shape, self.limits.images
        )
        if asked.encoded is not None:
            self.take(held, len(asked.encoded))
            rows = await self.several(model, asked.encoded)
            for number, row in enumerate(rows):
                if isinstance(row, ValueError):
                    raise ValueError(f"image {number}: {row}")
        else:
            if model.predictor.several_views:
                raise ValueError(f"{model.name} is a mean over views: send {protocol.ENCODED!r}")
            self.take(held, len(asked.pixels))
            rows = await asyncio.gather(*(model.batcher.submit([[x]]) for x in asked.pixels))
        body, headers, kind = protocol.answer(model.name, asked, np.stack(rows))
        return Response(body, headers=headers, media_type=kind)

    async def described(self, request: Request) -> Response:
        """GET /v2/models/NAME."""
        model = self.model(request.path_params["model"])
        classes = len(model.predictor.class_names)
        return JSONResponse(protocol.metadata(model.name, model.shape, classes))

    async def live(self, request: Request) -> Response:
        """GET /health, /v2/health/live."""
        return JSONResponse({"status": "ok", "live": True})

    async def is_ready(self, request: Request) -> Response:
        """GET /ready, /v2/health/ready, /v2/models/NAME/ready."""
        if "model" in request.path_params and request.path_params["model"] not in self.models:
            return refused(404, "no such model")
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def about(self, request: Request) -> Response:
        """GET /v2."""
        extensions = protocol.EXTENSIONS
        told = {"name": "jaxcls", "version": jaxcls.__version__, "extensions": extensions}
        return JSONResponse(told)

    async def names(self, request: Request) -> Response:
        """GET /models."""
        told = {}
        for name, model in self.models.items():
            classes, net = list(model.predictor.class_names), model.predictor.network.name
            told[name] = {"network": net, "image": list(model.shape), "classes": classes}
        return JSONResponse(told)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """GET /: a page to drop an image on."""
        options = json.dumps([*self.models]).replace("<", "\\u003c")
        return HTMLResponse(PAGE.replace("/*MODELS*/[]", options), headers=SAFE)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(OPENAPI)

    # -- Together ----------------------------------------------------------------------------------

    def app(self) -> Starlette:
        """Returns the application."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            for model in self.models.values():
                model.batcher.start()
            self.ready = True
            yield
            self.ready = False
            for model in self.models.values():
                await model.batcher.stop(STOPPING)
            self.workers.stop()
            self.painter.stop()

        posts = {
            "/predict": self.predict,
            "/explain": self.explain,
            "/v2/models/{model}/infer": self.infer,
            "/v2/models/{model}/versions/1/infer": self.infer,
        }
        gets = {
            "/": self.page,
            "/health": self.live,
            "/ready": self.is_ready,
            "/metrics": self.metrics,
            "/models": self.names,
            "/openapi.json": self.openapi,
            "/v2": self.about,
            "/v2/health/live": self.live,
            "/v2/health/ready": self.is_ready,
            "/v2/models/{model}": self.described,
            "/v2/models/{model}/ready": self.is_ready,
            "/v2/models/{model}/versions/1": self.described,
            "/v2/models/{model}/versions/1/ready": self.is_ready,
        }
        routes = [Route(path, self.route(path, f), methods=["POST"]) for path, f in posts.items()]
        routes += [Route(path, f, methods=["GET"]) for path, f in gets.items()]
        app = Starlette(
            routes=routes, lifespan=lifespan, exception_handlers={HTTPException: not_found}
        )
        app.router.redirect_slashes = False  # to where the client's own Host header says
        return app


async def _while_there(request: Request, answer: Awaitable[Response]) -> Response:
    """Returns an answer, unless the client goes: then what it asked for is let go, too."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refused(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns a response that says why there is no answer."""
    again = {"retry-after": "1"} if status == 503 else {}
    text = reason if len(reason) <= REASON else reason[: REASON - 3] + "..."
    return JSONResponse({"error": text}, status, SAFE | again | dict(headers or {}))


async def not_found(request: Request, error: HTTPException) -> Response:
    """Answers what no route takes."""
    return refused(error.status_code, str(error.detail), error.headers)


def of_json(body: bytes) -> list[tuple[str, str]]:
    """Returns the images of {"image": BASE64} or {"images": [BASE64, ...]}.

    Raises:
      ValueError: the body is something else.
    """
    told = protocol.read_json(body)
    found = told.get("images", [told.get("image")]) if isinstance(told, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError('write {"image": BASE64} or {"images": [BASE64, ...]}')
    return [(f"image {i}", x) for i, x in enumerate(found)]
