# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The web application: `POST /predict`, `GET /healthz`, and a page at `/` to try it in."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from pathlib import Path

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from .measurement import MAX_BODY, InvalidRequest, parse
from .model import Model

HERE = Path(__file__).parent
MODEL_FILE = HERE / "model.json"

DRAIN_LIMIT = 16 * 1024 * 1024
"""Bytes of an oversized body that are read and dropped before the connection is given up."""


def create_app(model_file: Path = MODEL_FILE) -> Flask:
    """Return the application, serving the model in that file.

    Raise ValueError or OSError when there is no model to serve, so that a server without one
    does not start.
    """
    model = Model.load(model_file)
    page = (HERE / "page.html").read_text(encoding="utf-8")
    policy = _content_security_policy(page)
    app = Flask(__name__, static_folder=None)

    @app.get("/")
    def index() -> Response:
        return Response(page, mimetype="text/html", headers={"Content-Security-Policy": policy})

    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok", accuracy=model.accuracy, scikit_learn=model.scikit_learn)

    @app.post("/predict")
    def predict() -> Response:
        petal = parse(_read_body(request), request.mimetype)
        return jsonify(prediction=model.predict(petal.length, petal.width))

    @app.errorhandler(InvalidRequest)
    def invalid(error: InvalidRequest) -> Response:
        return _error(error.status, error.field, str(error))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        field = {404: "path", 405: "method"}.get(error.code or 500, "request")
        response = _error(error.code or 500, field, error.description or error.name)
        # Keeps what the exception says beyond its text, such as Allow on a 405.
        for name, value in error.get_headers():
            if name not in ("Content-Type", "Content-Length"):
                response.headers[name] = value
        return response

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def _read_body(request: Request) -> bytes:
    """Return the body, cut one byte past MAX_BODY, which `parse` refuses.

    The rest of a longer body is read and dropped: a server that closes a connection while the
    client still sends makes the client lose the answer that explains why.
    """
    try:
        body = request.stream.read(MAX_BODY + 1)
        dropped = 0
        while dropped < DRAIN_LIMIT and (chunk := request.stream.read(65536)):
            dropped += len(chunk)
            # Lets a server without threads serve others between two chunks.
            time.sleep(0)
    except Exception as error:
        # Each server has exceptions of its own for a body that is not valid HTTP.
        raise InvalidRequest(400, "body", f"is not valid HTTP: {error}") from error
    return body


def _error(status: int, field: str, message: str) -> Response:
    response = jsonify(error={"field": field, "message": message})
    response.status_code = status
    return response


def _content_security_policy(page: str) -> str:
    """Allow the page's own style and script by their hashes, requests to itself, and no more."""

    def sources(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {sources('style')}; script-src {sources('script')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
