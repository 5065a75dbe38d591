# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The code of the iris image: accepted and rejected requests, and predictions.

The server as a whole is asked by the image's smoke test, inside the image.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "images/iris-api"
JSON = "application/json"

# Perceptron and scaler as scikit-learn 1.9.1 fits them to 70% of the iris data.
TRAINED = {
    "classes": ["setosa", "versicolor", "virginica"],
    "coefficients": [
        [-0.09306606670433726, -0.07372462995676714],
        [0.16306447584948133, -0.25404943201408564],
        [0.2903343106588297, 0.24607588634488325],
    ],
    "intercepts": [-0.1, -0.10000000000000003, -0.4],
    "mean": [3.828571428571429, 1.2276190476190476],
    "scale": [1.795959183209658, 0.7763768400283629],
    "accuracy": 0.8888888888888888,
    "scikit_learn": "1.9.1",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the package of the image importable for one test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if name.startswith("iris_api")]:
        del sys.modules[name]


@pytest.fixture
def measurement() -> Any:
    return importlib.import_module("iris_api.measurement")


@pytest.fixture
def model() -> Any:
    return importlib.import_module("iris_api.model")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    file = tmp_path / "model.json"
    file.write_text(json.dumps(TRAINED), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("body", "length", "width"),
    [
        (b'{"length": 5.1, "width": 2.4}', 5.1, 2.4),
        (b' {"width": 2, "length": 100}\n', 100.0, 2.0),
        (b'{"length": 1e-3, "width": 0.1}', 0.001, 0.1),
        (b'{"len\\u0067th": 1, "width": 1}', 1.0, 1.0),
    ],
)
def test_a_measurement_is_read(measurement: Any, body: bytes, length: float, width: float) -> None:
    assert measurement.parse(body, JSON) == measurement.Measurement(length, width)


@pytest.mark.parametrize(
    ("body", "status", "field", "words"),
    [
        pytest.param(b'{"length": "5.1", "width": 2}', 422, "length", "is a string", id="string"),
        pytest.param(b'{"length": true, "width": 2}', 422, "length", "is true", id="true"),
        pytest.param(b'{"length": 1, "width": false}', 422, "width", "is false", id="false"),
        pytest.param(b'{"length": null, "width": 2}', 422, "length", "is null", id="null"),
        pytest.param(b'{"length": [1], "width": 2}', 422, "length", "is a list", id="list"),
        pytest.param(b'{"length": {}, "width": 2}', 422, "length", "is an object", id="object"),
        pytest.param(b'{"width": 2}', 422, "length", "is missing", id="missing"),
        pytest.param(b"{}", 422, "length", "is missing", id="empty object"),
        pytest.param(b'{"lenght": 1, "width": 2}', 422, "lenght", "is not known", id="typo"),
        pytest.param(
            b'{"length": 1, "width": 2, "x": 3}', 422, "x", "length and width only", id="unknown"
        ),
        pytest.param(
            b'{"length": 1, "width": 2, "width": 3}', 422, "width", "more than once", id="twice"
        ),
        pytest.param(b'{"length": NaN, "width": 2}', 422, "length", "is nan", id="nan"),
        pytest.param(b'{"length": 1, "width": Infinity}', 422, "width", "finite", id="infinity"),
        pytest.param(b'{"length": -Infinity, "width": 1}', 422, "length", "finite", id="-infinity"),
        pytest.param(b'{"length": 1e999, "width": 2}', 422, "length", "finite", id="overflow"),
        pytest.param(b'{"length": -1, "width": 2}', 422, "length", "more than 0", id="negative"),
        pytest.param(b'{"length": 1, "width": 0}', 422, "width", "more than 0", id="zero"),
        pytest.param(b'{"length": 1, "width": -0.0}', 422, "width", "more than 0", id="-zero"),
        pytest.param(b'{"length": 100.1, "width": 2}', 422, "length", "at most 100 cm", id="huge"),
        pytest.param(
            b'{"length": 1' + b"0" * 400 + b', "width": 2}',
            422,
            "length",
            "at most",
            id="400 digits",
        ),
        pytest.param(
            b'{"length": ' + b"9" * 4070 + b', "width": 2}', 422, "length", "at most", id="digits"
        ),
        pytest.param(b"", 400, "body", "is empty", id="empty"),
        pytest.param(b" \n", 400, "body", "is empty", id="blank"),
        pytest.param(b"length=5.1&width=2.4", 400, "body", "line 1 column 1", id="form"),
        pytest.param(b'{"length": 5.1,', 400, "body", "is not JSON", id="cut off"),
        pytest.param(b"\xff\xfe", 400, "body", "is not UTF-8", id="bytes"),
        pytest.param(b"[5.1, 2.4]", 400, "body", "is a list", id="top-level list"),
        pytest.param(b"5.1", 400, "body", "is a number", id="top-level number"),
        pytest.param(b"NaN", 400, "body", "is a number", id="top-level nan"),
        pytest.param(b"null", 400, "body", "is null", id="top-level null"),
        pytest.param(b"[" * 4096, 400, "body", "is n", id="deep list"),
        pytest.param(b'{"a":' * 800, 400, "body", "is n", id="deep object"),
        pytest.param(b" " * 4097, 413, "body", "larger than 4096 bytes", id="large"),
    ],
)
def test_an_invalid_request_names_the_field(
    measurement: Any, body: bytes, status: int, field: str, words: str
) -> None:
    with pytest.raises(measurement.InvalidRequest) as caught:
        measurement.parse(body, JSON)
    assert (caught.value.status, caught.value.field) == (status, field)
    assert str(caught.value).startswith(f"{field} ")
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_an_error(measurement: Any, kind: str) -> None:
    with pytest.raises(measurement.InvalidRequest, match="send application/json") as caught:
        measurement.parse(b'{"length": 5.1, "width": 2.4}', kind)
    assert (caught.value.status, caught.value.field) == (415, "Content-Type")


@pytest.mark.parametrize(
    ("length", "width", "species"),
    [
        (5.1, 2.4, "virginica"),
        (1.4, 0.2, "setosa"),
        (4.0, 1.2, "versicolor"),
        (100.0, 100.0, "virginica"),
    ],
)
def test_the_model_predicts(
    model: Any, trained: Path, length: float, width: float, species: str
) -> None:
    assert model.Model.load(trained).predict(length, width) == species


def test_the_first_of_equal_scores_is_chosen(model: Any, trained: Path) -> None:
    trained.write_text(
        json.dumps({**TRAINED, "coefficients": [[0, 0]] * 3, "intercepts": [0, 1, 1]})
    )
    assert model.Model.load(trained).predict(1, 1) == "versicolor"


def test_a_saved_model_can_be_loaded(model: Any, trained: Path, tmp_path: Path) -> None:
    loaded = model.Model.load(trained)
    loaded.save(tmp_path / "again.json")
    assert model.Model.load(tmp_path / "again.json") == loaded
    assert json.loads((tmp_path / "again.json").read_text()) == TRAINED


@pytest.mark.parametrize(
    "document",
    [
        pytest.param([], id="list"),
        pytest.param({}, id="empty"),
        pytest.param({**TRAINED, "mean": [1]}, id="one mean"),
        pytest.param({**TRAINED, "intercepts": [0, 0]}, id="two intercepts"),
        pytest.param({**TRAINED, "accuracy": "good"}, id="word for number"),
        pytest.param({**TRAINED, "classes": [], "coefficients": [], "intercepts": []}, id="none"),
    ],
)
def test_an_invalid_model_is_not_served(model: Any, trained: Path, document: Any) -> None:
    trained.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match="holds no iris model"):
        model.Model.load(trained)


# With Flask, if it is installed; the smoke test sends the same requests to the real server.


@pytest.fixture
def client(trained: Path) -> Any:
    pytest.importorskip("flask")
    return importlib.import_module("iris_api.app").create_app(trained).test_client()


def test_the_api_predicts(client: Any) -> None:
    answer = client.post("/predict", json={"length": 5.1, "width": 2.4})
    assert (answer.status_code, answer.json) == (200, {"prediction": "virginica"})
    with_charset = client.post(
        "/predict", data=b'{"length": 1, "width": 1}', content_type=f"{JSON}; charset=utf-8"
    )
    assert with_charset.status_code == 200


def test_the_api_names_the_invalid_field(client: Any) -> None:
    answer = client.post("/predict", json={"length": "5.1", "width": 2.4})
    assert answer.status_code == 422
    assert answer.json == {
        "error": {"field": "length", "message": "length is a string; send a number of cm"}
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "field"),
    [
        ("GET", "/none", 404, "path"),
        ("GET", "/predict", 405, "method"),
        ("PUT", "/", 405, "method"),
    ],
)
def test_every_error_is_json(client: Any, method: str, path: str, status: int, field: str) -> None:
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.json["error"]["field"]) == (status, field)
    assert (status == 405) is ("Allow" in answer.headers)


def test_a_body_of_10_mb_is_read_completely_and_rejected(client: Any) -> None:
    answer = client.post("/predict", data=b" " * 10_000_000, content_type=JSON)
    assert (answer.status_code, answer.json["error"]["field"]) == (413, "body")


class BrokenBody(io.BytesIO):
    """A body whose server finds invalid bytes in it, and raises its own exception."""

    def read(self, size: int | None = -1) -> bytes:
        raise InvalidChunk("Invalid chunk size: b'zz'")


class InvalidChunk(Exception):
    """As servers define it: derived from no other exception."""


def test_a_body_that_is_not_valid_http_is_an_error_of_the_client(client: Any) -> None:
    answer = client.post(
        "/predict",
        input_stream=BrokenBody(),
        content_type=JSON,
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert answer.status_code == 400
    assert answer.json["error"]["field"] == "body"
    assert answer.json["error"]["message"] == ("body is not valid HTTP: Invalid chunk size: b'zz'")


def test_the_page_loads_nothing_from_other_servers(client: Any) -> None:
    answer = client.get("/")
    page = answer.get_data(as_text=True)
    assert answer.mimetype == "text/html"
    assert "<form" in page
    assert "://" not in page
    policy = answer.headers["Content-Security-Policy"]
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy


def test_the_health_check_names_the_model(client: Any) -> None:
    answer = client.get("/healthz")
    assert answer.json == {"status": "ok", "accuracy": TRAINED["accuracy"], "scikit_learn": "1.9.1"}
