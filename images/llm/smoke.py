# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve a small language model, and let an OpenAI client complete its sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import smoke_kit

# As long as tokens can be, with every character that they can have.
TOKEN = f"a-token_of~the.smoke+test/{'x' * 485}="
URL = "http://127.0.0.1:8000"
# Beside the program that trained it, see make_tiny_model.py.
MODEL = "/opt/slipway/tiny-model"
SENTENCE = "a slipway is a ramp on which a ship is built, and down which it slides into the water."
BEGIN = "<s>a slipway"
REST = SENTENCE.removeprefix("a slipway")


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server with the token of the test until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.write_text(f"{TOKEN}\n", encoding="utf-8")
        # Of a host that is busy, too: the requests at the end take longer there.
        variables = {"LLM_TOKEN_FILE": str(token), "LLM_STOP_SECONDS": "120"}
        process = subprocess.Popen(["serve-llm", *arguments], env={**os.environ, **variables})
        try:
            deadline = time.monotonic() + smoke_kit.START_SECONDS
            while ask("/health")[0] != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise smoke_kit.SmokeError(f"serve-llm does not answer at {URL}")
                time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=150)


def ask(path: str, token: str = "", body: bytes | None = None) -> tuple[int, str]:
    """Return status and text of an answer; status 0 without an answer."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(URL + path, body, headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def client() -> openai.OpenAI:
    """Return a client of the server."""
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=TOKEN, max_retries=0)


def complete() -> str:
    """Return how the model completes its sentence."""
    answer = client().completions.create(
        model=MODEL, prompt=BEGIN, temperature=0, max_tokens=120, stream=False
    )
    return answer.choices[0].text


def only_the_token_opens_it() -> None:
    """Only the token opens the server."""
    body = json.dumps({"model": MODEL, "prompt": BEGIN, "max_tokens": 1}).encode()
    for path, sent in (("/v1/models", None), ("/v1/completions", body)):
        for token in (
            "",
            "x" * 28,
            TOKEN[:-1],
            f"{TOKEN}x",
            TOKEN.swapcase(),
            TOKEN.replace(".", "x"),
        ):
            status, text = ask(path, token, sent)
            smoke_kit.expect(f"status of {path} with token {token!r}", status, 401)
            smoke_kit.expect("the error", json.loads(text)["error"]["code"], "invalid_api_key")
    smoke_kit.expect("status of another path", ask("/load_model", TOKEN, body)[0], 404)
    smoke_kit.expect("status of 9 MB", ask("/v1/completions", TOKEN, b" " * 9_000_000)[0], 413)
    smoke_kit.expect("models", [model.id for model in client().models.list()], [MODEL])


def it_completes_its_sentence() -> None:
    """The model completes its sentence, at once and as a stream."""
    smoke_kit.expect("the completion", complete(), REST)
    stream = client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "a slipway"}],
        temperature=0,
        max_tokens=120,
        stream=True,
    )
    parts = [part.choices[0].delta.content or "" for part in stream if part.choices]
    smoke_kit.expect("the stream", "".join(parts), REST)
    smoke_kit.expect("the stream has parts", len(parts) > 10, True)


def requests_are_finished_at_the_end(process: subprocess.Popen[bytes]) -> None:
    """Requests that run when the server stops are answered."""
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(complete) for _ in range(4)]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        smoke_kit.expect("answers", {request.result() for request in running}, {REST})
    smoke_kit.expect("exit status", process.wait(timeout=150), 0)


def the_server_works() -> str:
    """The server answers an OpenAI client with the token."""
    began = time.monotonic()
    with serving(MODEL) as process:
        seconds = time.monotonic() - began
        only_the_token_opens_it()
        it_completes_its_sentence()
        requests_are_finished_at_the_end(process)
    return f"ready after {seconds:.0f} s"


def mistakes_are_named() -> None:
    """A missing model and a token that cannot be used are errors."""
    for arguments, token, words in (
        (["not-there"], TOKEN, "no model in /models/not-there"),
        ([MODEL], "a b", "is not usable"),
    ):
        with tempfile.NamedTemporaryFile("w", suffix=".token") as file:
            file.write(token)
            file.flush()
            done = subprocess.run(
                ["serve-llm", *arguments],
                env={**os.environ, "LLM_TOKEN_FILE": file.name},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        smoke_kit.expect(f"exit status of {words!r}", done.returncode, 1)
        smoke_kit.expect(f"the error has {words!r}", words in done.stderr, True)


def nothing_comes_from_a_hub() -> str:
    """The libraries download nothing."""
    from huggingface_hub import __version__, constants

    smoke_kit.expect("offline", constants.HF_HUB_OFFLINE, True)
    smoke_kit.expect("no telemetry", constants.HF_HUB_DISABLE_TELEMETRY, True)
    smoke_kit.expect("a cache in the home", constants.HF_HOME.startswith(str(Path.home())), False)
    return f"huggingface_hub {__version__}"


if __name__ == "__main__":
    smoke_kit.main(
        the_server_works,
        mistakes_are_named,
        nothing_comes_from_a_hub,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
