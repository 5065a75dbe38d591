# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services of a person: the plan has her user ID, and `ml url` shows her the address."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    commands,
    engine,
    own_services,
    settings,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_services
from ansible_collections.slipway.host.plugins.module_utils.services import project

from tests.unit import gpu_facts
from tests.unit.role_options import options

ALICE = {"name": "alice", "uid": 2001}
ACCOUNTS = [ALICE, {"name": "bob"}, {"name": "carol", "uid": 2003, "state": "absent"}]
SECRETS = "/etc/slipway/services/notebooks/secrets"
TOKEN = f"{SECRETS}/jupyter_token"
HOST = settings.Host(contact="Dana", aliases={}, images={}, cuda={})


def plan(**declared: Any) -> dict[str, Any]:
    """Return the plan of one service `notebooks` of the image jupyter."""
    entry = {"name": "notebooks", "image": "jupyter", **declared}
    given = options("ml_services", instances=[entry]) | {"user_access_users": ACCOUNTS}
    (found,) = ml_services.plan(gpu_facts.facts("none"), given)["projects"]
    assert isinstance(found, dict)
    return found


def files(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["path"].removeprefix("/etc/slipway/services/"): file for file in found["files"]}


def test_a_service_with_a_user_runs_with_her_user_id_and_owns_its_files() -> None:
    found = plan(user="alice", volumes={"work": "/srv/notebooks"})
    assert "user: 2001:2001" in found["files"][1]["content"]
    assert found["secrets"] == [{"path": TOKEN, "owner": "2001", "group": "2001"}]
    (mount,) = found["mounts"]
    assert (mount["path"], mount["owner"], mount["group"]) == ("/srv/notebooks", "2001", "2001")


def test_the_address_of_her_service_is_in_a_file_without_the_token() -> None:
    found = plan(user="alice", ports={"jupyter": 8890})
    file = files(found)["notebooks/address.json"]
    assert json.loads(file["content"]) == {
        "uid": 2001,
        "urls": {"jupyter": "http://127.0.0.1:8890/lab?token={token}"},
        "token_file": TOKEN,
    }
    # She enters the folder; the token in it is a file of mode 0600 that she owns.
    assert files(found)["notebooks/secrets"]["mode"] == "0711"
    assert found["folders"][0]["entries"] == ["compose.yaml", "address.json", "secrets"]


def test_a_service_without_a_user_stays_as_it_was() -> None:
    found = plan(uid=2001)
    assert "notebooks/address.json" not in files(found)
    assert files(found)["notebooks/secrets"]["mode"] == "0700"
    assert found["folders"][0]["entries"] == ["compose.yaml", "secrets"]
    assert found["projects"][0]["services"] == plan(user="alice")["projects"][0]["services"]


@pytest.mark.parametrize(
    ("declared", "error"),
    [
        ({"user": "alice", "uid": 7}, "user alice: uid is set too; expected one of the two."),
        ({"user": "alize"}, "user alize: not in user_access_users; .* Did you mean 'alice'?"),
        ({"user": "zoe"}, "user zoe: not in user_access_users; .* or set uid instead of user."),
        ({"user": "carol"}, "user carol: not in user_access_users; expected a user that is pres"),
        ({"user": "bob"}, "user bob: no uid in user_access_users; .* `id -u bob` if"),
    ],
)
def test_a_user_without_a_known_user_id_is_refused(declared: dict[str, Any], error: str) -> None:
    with pytest.raises(ml_services.ServiceError) as raised:
        plan(**declared)
    start, _any, end = error.partition(".*")
    assert str(raised.value).startswith(f"service notebooks: {start}")
    assert end in str(raised.value)


# The command ml url.


def test_both_sides_name_the_same_file() -> None:
    assert str(own_services.FOLDER) == project.FOLDER
    assert (own_services.FILE, own_services.DOOR_FILE) == (project.ADDRESS_FILE, project.DOOR_FILE)


@pytest.fixture
def port() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of services; no engine answers the caller."""
    monkeypatch.setattr(own_services, "FOLDER", tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    return tmp_path


def service(folder: Path, name: str, port: int, **changed: Any) -> None:
    token = folder / f"{name}.token"
    token.write_text("secret\n", encoding="utf-8")
    declared = {
        "uid": os.getuid(),
        "urls": {"jupyter": f"http://127.0.0.1:{port}/lab?token={{token}}"},
        "token_file": str(token),
    }
    (folder / name).mkdir()
    (folder / name / "address.json").write_text(json.dumps({**declared, **changed}))


def url(*words: str) -> int:
    arguments = commands.build_parser(HOST).parse_args(["url", *words])
    return commands.url(engine.Docker("Dana"), HOST, arguments)


def test_she_sees_the_address_with_the_token_without_docker(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service(folder, "notebooks", port)
    for words in ((), ("notebooks",)):
        assert url(*words) == 0
        shown = capsys.readouterr()
        assert shown.out == f"notebooks jupyter  http://127.0.0.1:{port}/lab?token=secret\n"
        assert shown.err == ""
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    assert url() == 0
    assert f"run there: ssh -L {port}:127.0.0.1:{port} " in capsys.readouterr().err


def test_she_sees_the_address_at_the_front_door_first(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    service(folder, "notebooks", port)
    door = folder / "notebooks/front_door.json"
    door.write_text('["https://lab.example.org/lab?token={token}"]')
    assert url() == 0
    at_host = f"notebooks jupyter  http://127.0.0.1:{port}/lab?token=secret\n"
    at_door = "notebooks front door  https://lab.example.org/lab?token=secret\n"
    assert capsys.readouterr().out == at_door + at_host
    for broken in ("{", "3", "null"):
        door.write_text(broken)
        assert url() == 0
        assert capsys.readouterr().out == at_host


def test_a_service_that_does_not_answer_is_named(
    folder: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    service(folder, "notebooks", free)
    assert url() == 1
    wrong = f"ml: service notebooks does not answer at http://127.0.0.1:{free}/lab; ask Dana\n"
    assert capsys.readouterr().err == wrong


def test_services_of_others_and_broken_files_are_not_hers(folder: Path, port: int) -> None:
    service(folder, "others", port, uid=os.getuid() + 1)
    service(folder, "broken", port, urls=3)
    (folder / "half").mkdir()
    (folder / "half/address.json").write_text("{")
    assert own_services.find() == []
    for words in ((), ("others",)):
        with pytest.raises(MlError):
            url(*words)


def test_a_token_that_she_cannot_read_is_an_error(folder: Path, port: int) -> None:
    service(folder, "notebooks", port, token_file=str(folder / "none"))
    with pytest.raises(MlError, match=r"cannot read .*/none"):
        url()
