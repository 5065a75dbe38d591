# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the tamper matrix that a throwaway host cannot have: answers of a changed host.

For each kind an entry with the answer of a host as declared, and changes of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.units import NO_UNIT

Change = Callable[[dict[str, Any]], object]
SOCKET = "unix:///run/user/4001/docker.sock"


@dataclass(frozen=True)
class AnswerTamper:
    """A change of what a host answers about an entry in CLEAN; its kind is the first word."""

    subject: str
    field: str
    title: str
    change: Change

    @property
    def kind(self) -> str:
        """Return the kind of the entry."""
        return self.subject.partition(" ")[0]

    @property
    def covered(self) -> tuple[str, str]:
        """Return kind and field that this tamper covers."""
        return self.kind, self.field

    def __str__(self) -> str:
        """Return a name for reports."""
        return f"{self.subject}: {self.field}: {self.title}"


def _container() -> dict[str, Any]:
    """Return a container as the engine reports it, as declared."""
    return {
        "id": "c" * 64,
        "name": "api-api-1",
        "service": "api",
        "state": "running",
        "health": "healthy",
        "created": 100,
        "labels": {"io.slipway.config": "c0", "io.slipway.urls": "u"},
        "image": "sha256:i0",
        "user": "1000:1000",
        "own": {"command": "c", "entrypoint": "e", "healthcheck": "h", "working_dir": "w"},
        "inherited": {"command": "i", "entrypoint": "e", "healthcheck": "h", "working_dir": "w"},
        "variables": ["MODE"],
        "mounts": [["volume", "api_data", "/data", True]],
        "ports": ["127.0.0.1:80:80/tcp"],
        "networks": ["api_default"],
        "restart": "unless-stopped",
        "shm_size": 64,
        "settings": dict(SETTINGS),
    }


SETTINGS = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
    "init": True,
    "mem_limit": 1024,
    "gpus": [["cdi", 0, ["nvidia.com/gpu=0"]]],
}
PROJECT = {
    "name": "api",
    "services": [
        {
            "name": "api",
            "config": "c0",
            "image": "sha256:d0",
            "reference": "slipway/api:cpu",
            "container": {
                "user": "1000:1000",
                "restart": "unless-stopped",
                "networks": ["api_default"],
                "ports": ["127.0.0.1:80:80/tcp"],
                "mounts": [["volume", "api_data", "/data", True]],
                "shm_size": 64,
                "settings": SETTINGS,
                "command": "c",
                "healthcheck": "",
                "labels": {"io.slipway.config": "c0", "io.slipway.urls": "u"},
                "variables": ["MODE"],
                "environment": "digest",
            },
        }
    ],
    "since": ["/etc/slipway/services/api/secrets/token"],
}
# What somebody may give to a container by hand.
GIVEN = {
    "privileged": True,
    "cap_add": ["SYS_ADMIN"],
    "cap_drop": [],
    "security_opt": ["seccomp=unconfined"],
    "read_only": False,
    "devices": ["/dev/sda"],
    "pid": "host",
    "group_add": ["0"],
    "mem_limit": 0,
    "gpus": [["cdi", 0, ["nvidia.com/gpu=all"]]],
}


# Entries, and the answer of a host that is as declared.
CLEAN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "modules": ({"name": "nvidia", "version": "580.1"}, {"modules": {"nvidia": "580.1"}}),
    "modules absent": ({"name": "nouveau", "state": "absent"}, {"modules": {"nouveau": None}}),
    "munge_keys": (
        {"path": "/key", "digest": "d", "managed": True, "key_host": "gpu01"},
        {"files": {"/key": ["file", "0400", "munge", "munge", "d", 101, 101]}},
    ),
    "slurm_accounts": (
        {
            "cluster": "lab",
            "accounts": [{"name": "vision", "members": ["alice"], "gpus": 4, "jobs_per_member": 9}],
        },
        {
            "slurm_accounts": {
                "lab": {
                    "rows": [
                        ["root", "", "", "1", "", ""],
                        ["vision", "", "root", "1", "gres/gpu=4", "9"],
                        ["vision", "alice", "", "1", "", "9"],
                    ],
                    "defaults": {"alice": "vision"},
                }
            },
            "texts": {"/var/lib/slipway/slurm/accounts.json": '{"vision": ["alice"]}'},
        },
    ),
    "slurm_databases": (
        {"name": "slipwayslurm"},
        {"slurm_databases": {"slipwayslurm": {"database": 1, "user": 1, "socket": 1, "rights": 1}}},
    ),
    "units": (
        {"name": "docker.service", "active": True, "packet_filter": True},
        {
            "units": {"docker.service": {**NO_UNIT, "load": "loaded", "active": "active"}},
            "starts": {"docker.service": None},
            "packet_filter": {"docker.service": {"missing": []}},
        },
    ),
    "members": (
        {"group": "render", "users": ["alice"], "devices": ["/dev/dri/renderD"]},
        {
            "groups": {"render": [998, ["alice"]]},
            "users": {"alice": [4001, 4001, "/home/alice", "/bin/sh", ""]},
            "devices": {"/dev/dri/renderD": {"render": "/dev/dri/renderD128"}},
        },
    ),
    "rootless": (
        {"user": "alice", "reads": ["/etc/slipway/rootless/alice.json"]},
        {
            "rootless": {"alice": [True, 65536, 65536, SOCKET, 100.0]},
            "users": {"alice": [4001, 4001, "/home/alice", "/bin/sh", ""]},
            "reads": {"/etc/slipway/rootless/alice.json": [50.0, "digest"]},
            "starts": {"rootless-alice": None},
        },
    ),
    "images": (
        {"reference": "slipway/api:cpu", "digest": "sha256:d0"},
        {
            "engine": None,
            "images": {
                "slipway/api:cpu": [
                    "sha256:i0",
                    {"id": "sha256:i0", "digest": "sha256:d0", "origin": "built", "time": 0},
                ]
            },
        },
    ),
    "projects": (
        PROJECT,
        {
            "engine": None,
            "projects": {
                "api": {
                    "containers": [_container()],
                    "record": {"containers": ["c" * 64], "starting": False},
                    "limits": ["cpu", "memory", "pids"],
                }
            },
            "environments": {"api": ["c" * 64]},
            "listeners": {"80": []},
            "addresses": {"0.0.0.0": True, "127.0.0.1": True},
            "images": {
                "slipway/api:cpu": [
                    "sha256:i0",
                    {"id": "sha256:i0", "digest": "sha256:d0", "origin": "built", "time": 0},
                ]
            },
            "ctimes": {"/etc/slipway/services/api/secrets/token": 50.0},
        },
    ),
}


def _rootless() -> Iterator[AnswerTamper]:
    user = "alice"
    for place, field, value, title in (
        (0, "lingers", False, "ends with the last session"),
        (1, "uids", 0, "without subordinate uids"),
        (2, "gids", 65535, "with too few subordinate gids"),
        (3, "context", "unix:///tmp/of-bob.sock", "another context"),
        (3, "context", "", "no context"),
        (4, "began", 0.0, "not answering"),
    ):

        def change(answer: dict[str, Any], place: int = place, value: Any = value) -> None:
            answer["rootless"][user][place] = value

        yield AnswerTamper("rootless", field, title, change)
    yield AnswerTamper(
        *("rootless", "user", "without the account"),
        lambda answer: answer["rootless"].update(alice=None),
    )
    reads = "/etc/slipway/rootless/alice.json"
    yield AnswerTamper(
        *("rootless", "reads", "a file changed after the start"),
        lambda answer: answer["reads"].update({reads: [150.0, "other"]}),
    )


def _images() -> Iterator[AnswerTamper]:
    reference = "slipway/api:cpu"
    for field, title, change in (
        ("reference", "removed", lambda answer: answer["images"].pop(reference)),
        ("reference", "engine stopped", lambda answer: answer.update(engine="no", images=None)),
        ("id", "other content", lambda answer: answer["images"][reference].__setitem__(0, "x")),
        ("id", "not recorded", lambda answer: answer["images"][reference][1].clear()),
        (
            "digest",
            "other context",
            lambda answer: answer["images"][reference][1].update(digest="x"),
        ),
    ):
        yield AnswerTamper("images", field, title, change)


def _projects() -> Iterator[AnswerTamper]:
    def container(**values: Any) -> Change:
        return lambda answer: answer["projects"]["api"]["containers"][0].update(values)

    def part(name: str, **values: Any) -> Change:
        return lambda answer: answer["projects"]["api"]["containers"][0][name].update(values)

    def add(**values: Any) -> Change:
        more = {**_container(), "id": "f" * 64, **values}
        return lambda answer: answer["projects"]["api"]["containers"].append(more)

    def remove(answer: dict[str, Any]) -> None:
        answer["projects"]["api"]["containers"].clear()

    image = ["sha256:i1", {"id": "sha256:i1", "digest": "x", "origin": "built", "time": 0}]
    for field, title, change in (
        ("name", "removed", remove),
        ("name", "engine stopped", lambda answer: answer.update(engine="no", projects=None)),
        ("services", "stopped", container(state="exited")),
        ("services", "paused", container(state="paused")),
        ("services", "unhealthy", container(health="unhealthy")),
        ("services", "replaced by hand", container(id="f" * 64)),
        ("services", "a container more", add(service="other")),
        ("services", "a second container", add(name="copy")),
        ("config", "another configuration", part("labels", **{"io.slipway.config": "x"})),
        ("image", "another image", container(image="sha256:x")),
        (
            "reference",
            "an image of another context",
            lambda a: a["images"].update({"slipway/api:cpu": image}),
        ),
        ("user", "root", container(user="0:0")),
        ("restart", "never", container(restart="no")),
        ("networks", "the network of the host", container(networks=["host"])),
        ("ports", "open to the network", container(ports=["0.0.0.0:80:80/tcp"])),
        ("mounts", "the host's files", container(mounts=[["bind", "/", "/host", True]])),
        ("mounts", "none", container(mounts=[])),
        ("shm_size", "less", container(shm_size=1)),
        ("command", "another command", part("own", command="x")),
        ("command", "another entrypoint", part("own", entrypoint="x")),
        ("command", "another folder", part("own", working_dir="x")),
        ("healthcheck", "another check", part("own", healthcheck="x")),
        ("labels", "another label", part("labels", **{"io.slipway.urls": "x"})),
        ("variables", "a variable more", container(variables=["LD_PRELOAD", "MODE"])),
        ("environment", "another value", lambda answer: answer["environments"].update(api=[])),
        ("since", "older than a secret", container(created=10)),
        *(("settings", name, part("settings", **{name: value})) for name, value in GIVEN.items()),
    ):
        yield AnswerTamper("projects", field, title, change)


def _munge_keys() -> Iterator[AnswerTamper]:
    def change(position: int, value: str) -> Change:
        return lambda answer: answer["files"]["/key"].__setitem__(position, value)

    yield AnswerTamper(
        *("munge_keys", "path", "missing"), lambda answer: answer["files"].update({"/key": None})
    )
    for position, (field, value) in enumerate(
        [("type", "link"), ("mode", "0644"), ("owner", "alice"), ("group", "x"), ("digest", "x")]
    ):
        yield AnswerTamper("munge_keys", field, value, change(position, value))


def _slurm_accounts() -> Iterator[AnswerTamper]:
    def change(row: int, position: int, value: str) -> Change:
        return lambda a: a["slurm_accounts"]["lab"]["rows"][row].__setitem__(position, value)

    for title, tampered in (
        ("another share", change(1, 3, "9")),
        ("another limit of GPUs", change(1, 4, "cpu=1,gres/gpu=8")),
        ("no limit of jobs", change(1, 5, "")),
        ("a limit of a member", change(2, 4, "gres/gpu=1")),
        ("no member", lambda a: a["slurm_accounts"]["lab"]["rows"].pop()),
        ("no account", lambda a: a["slurm_accounts"]["lab"]["rows"].clear()),
        ("no default account", lambda a: a["slurm_accounts"]["lab"]["defaults"].update(alice="")),
    ):
        yield AnswerTamper("slurm_accounts", "accounts", title, tampered)
    yield AnswerTamper(
        *("slurm_accounts", "cluster", "no answer"),
        lambda a: a["slurm_accounts"].update(lab=None),
    )
    yield AnswerTamper("slurm_accounts", "record", "lost", lambda a: a["texts"].clear())


def _slurm_databases() -> Iterator[AnswerTamper]:
    def change(**counts: int) -> Change:
        return lambda a: a["slurm_databases"]["slipwayslurm"].update(counts)

    kind = "slurm_databases"
    yield AnswerTamper(kind, "name", "missing", change(database=0, user=0))
    yield AnswerTamper(
        kind, "name", "no answer", lambda a: a["slurm_databases"].update(slipwayslurm=None)
    )
    yield AnswerTamper(kind, "user", "missing", change(user=0))
    yield AnswerTamper(kind, "user", "with a password", change(socket=0))
    yield AnswerTamper(kind, "user", "without rights", change(rights=0))


ANSWER_TAMPERS = (
    AnswerTamper("modules", "name", "not loaded", lambda a: a["modules"].update(nvidia=None)),
    AnswerTamper("modules", "version", "another one", lambda a: a["modules"].update(nvidia="1")),
    AnswerTamper("modules", "version", "unknown", lambda a: a["modules"].update(nvidia="")),
    AnswerTamper("modules absent", "state", "loaded", lambda a: a["modules"].update(nouveau="")),
    AnswerTamper(
        *("units", "packet_filter", "flushed"),
        lambda a: a["packet_filter"]["docker.service"]["missing"].append("bridge"),
    ),
    AnswerTamper("members", "devices", "not a member", lambda a: a["groups"]["render"][1].clear()),
    *_munge_keys(),
    *_slurm_accounts(),
    *_slurm_databases(),
    *_rootless(),
    *_images(),
    *_projects(),
)
