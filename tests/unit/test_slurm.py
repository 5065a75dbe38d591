# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role slurm, its files, and what it reads on hosts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.action import slurm_node
from ansible_collections.slipway.host.plugins.module_utils.roles import slurm
from ansible_collections.slipway.host.plugins.module_utils.slurm import config, parts
from ansible_collections.slipway.host.plugins.module_utils.slurm.declaration import SlurmError
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state
from ansible_collections.slipway.host.plugins.module_utils.state.model import ConflictError
from ansible_collections.slipway.host.plugins.modules import munge_key

from tests.unit.conftest import RunModule
from tests.unit.role_options import options as role_options

OPTIONS = role_options("slurm")
H100, A100 = "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB"


def node(name: str, **changes: Any) -> dict[str, Any]:
    """Return the fact of a host with two GPUs."""
    return {
        "hostname": name,
        "address": f"192.0.2.{len(name)}",
        "cpus": 64,
        "sockets": 2,
        "cores": 16,
        "threads": 2,
        "memory": 257000,
        "gpus": [[0, H100], [1, H100]],
        "reserved": [],
        "cgroup": True,
        "munge_key": "k",
        "managed": True,
        "foreign": "",
        "nodes": {},
        "cluster": "",
        "jobs_folder": "",
        **changes,
    }


def plan(
    name: str = "head",
    known: Mapping[str, Any] | None = None,
    managed: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Return the plan of host NAME in a cluster of the hosts head and gpu02."""
    facts = {
        "inventory_name": name,
        "distribution_release": "trixie",
        "slurm": managed,
        "fact_of_hosts": {"head": node("head"), "gpu02": node("gpu02")} if known is None else known,
    }
    declared = {"controller": "head", "nodes": ["head", "gpu02"], **changes}
    return slurm.plan(facts, role_options("slurm", **declared))


def content(found: Mapping[str, Any], path: str) -> str:
    """Return the content of an owned file."""
    return str(next(entry["content"] for entry in found["owned"]["files"] if entry["path"] == path))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "CPUs=64 Sockets=2 CoresPerSocket=16 ThreadsPerCore=2 RealMemory=243968"
            " Gres=gpu:h100_pcie:2",
        ),
        ({"sockets": 0, "cpus": 3, "gpus": []}, "CPUs=3 RealMemory=243968"),
        ({"sockets": 0, "memory": 100, "gpus": [[0, ""]]}, "CPUs=64 RealMemory=1 Gres=gpu:1"),
        (
            {"sockets": 0, "gpus": [[1, A100], [0, H100], [2, A100]]},
            "CPUs=64 RealMemory=243968 Gres=gpu:a100-sxm4-40gb:2,gpu:h100_pcie:1",
        ),
        ({"sockets": 0, "reserved": [0, 1]}, "CPUs=64 RealMemory=243968"),
    ],
)
def test_the_line_of_a_node(changes: Mapping[str, Any], line: str) -> None:
    assert config.node_line(node("n", **changes)) == f"NodeName=n NodeAddr=192.0.2.1 {line}"


@pytest.mark.parametrize(
    ("gpus", "release", "settings"),
    [
        ([[0, H100], [1, H100]], "trixie", ["DefCpuPerGPU=1", "Epilog=epilog"]),
        ([], "trixie", ["Epilog=epilog"]),
        ([], "bookworm", []),
    ],
)
def test_jobs_get_a_share_of_the_cpus_and_an_epilog(
    gpus: list[Any], release: str, settings: list[str]
) -> None:
    """Slurm of older releases does not send the epilog to the nodes."""
    nodes = {"a": node("a", gpus=gpus, cpus=1)}
    written = config.slurm_conf(OPTIONS, [nodes["a"]], nodes, release).splitlines()
    found = [line for line in written if line.startswith(("DefCpuPerGPU", "Epilog"))]
    assert found == settings


def test_reserved_gpus_are_counted_by_address_and_offered_by_device_file() -> None:
    found = config.gres_conf({"a": node("a", gpus=[[3, H100], [0, H100], [1, A100]], reserved=[1])})
    assert found.splitlines()[1:] == [
        "NodeName=a Name=gpu Type=h100_pcie File=/dev/nvidia3",
        "NodeName=a Name=gpu Type=a100-sxm4-40gb File=/dev/nvidia1",
    ]


def test_slurm_conf_names_controller_nodes_and_partitions() -> None:
    partitions = [
        {"name": "main", "default": True, "default_time": "1:00:00", "max_time": "1-0"},
        {
            "name": "long",
            "default_time": "1-0",
            "max_time": "UNLIMITED",
            "nodes": ["gpu02"],
            "groups": ["lab", "staff"],
        },
    ]
    lines = content(plan(partitions=partitions), parts.FILES["slurm"]).splitlines()
    assert "SlurmctldHost=head(192.0.2.4)" in lines
    assert "ProctrackType=proctrack/cgroup" in lines
    assert "TaskPlugin=task/cgroup,task/affinity" in lines
    assert "DefMemPerCPU=3812" in lines
    assert "DefCpuPerGPU=32" in lines
    assert "Epilog=epilog" in lines
    assert lines[-2:] == [
        "PartitionName=main Nodes=head,gpu02 Default=YES DefaultTime=1:00:00 MaxTime=1-0",
        "PartitionName=long Nodes=gpu02 Default=NO DefaultTime=1-0 MaxTime=UNLIMITED"
        " AllowGroups=lab,staff",
    ]


@pytest.mark.parametrize(
    ("cgroups", "release", "setting", "tracking"),
    [
        ((True, True), "trixie", "ConstrainDevices=yes", "cgroup"),
        ((True, False), "trixie", "CgroupPlugin=disabled", "linuxproc"),
        ((False, False), "jammy", "", "linuxproc"),
    ],
)
def test_control_groups_are_used_where_all_nodes_have_them(
    cgroups: tuple[bool, bool], release: str, setting: str, tracking: str
) -> None:
    nodes = {name: node(name, cgroup=one) for name, one in zip("ab", cgroups, strict=True)}
    written = config.cgroup_conf(nodes, release).removeprefix(config.WRITTEN_BY)
    assert setting in written if setting else written == ""
    assert f"proctrack/{tracking}\n" in config.slurm_conf(OPTIONS, [nodes["a"]], nodes)


@pytest.mark.parametrize(("release", "restarts"), [("trixie", False), ("bookworm", True)])
def test_older_releases_restart_the_controller_for_new_nodes(release: str, restarts: bool) -> None:
    known = {"a": node("a")}
    facts = {"inventory_name": "a", "distribution_release": release, "fact_of_hosts": known}
    found = slurm.plan(facts, role_options("slurm", controller="a", nodes=["a"]))
    script = found["parts"]["controller"]["apply"][-1]
    assert ("systemctl restart slurmctld" in script) == restarts
    assert "scontrol reconfigure" in script


def test_a_host_has_the_parts_that_it_is_declared_for() -> None:
    assert list(plan()["parts"]) == ["controller", "node"]
    assert list(plan("gpu02")["parts"]) == ["node"]
    assert list(plan(nodes=["gpu02"])["parts"]) == ["controller"]
    packages = [entry["name"] for entry in plan()["owned"]["packages"]]
    assert packages == ["munge", "slurmctld", "slurm-client", "slurmd"]
    assert [entry["name"] for entry in plan("gpu02")["owned"]["units"]] == [
        "munge.service",
        "slurmd.service",
    ]


def test_the_role_is_off_without_a_controller() -> None:
    assert plan(controller="")["owned"] == {"refused": []}
    assert plan(controller="", managed=True)["owned"] == {"refused": []}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("head", {"state": "absent"}), ("gpu03", {}), ("gpu02", {"nodes": ["head"]})],
)
def test_only_what_the_role_installed_is_removed(name: str, changes: Mapping[str, Any]) -> None:
    assert plan(name, **changes)["owned"] == {"refused": []}
    found = plan(name, managed=True, **changes)
    assert found["remove"]
    owned = found["owned"]
    assert {entry["state"] for entry in (*owned["files"], *owned["packages"])} == {"absent"}
    # An interrupted removal is found by its folder.
    assert owned["files"][-1]["path"] == state.STATE_FOLDER


def test_a_node_out_of_reach_stays_as_recorded() -> None:
    recorded = json.loads(content(plan(), state.NODES))
    known = {"head": node("head", nodes=recorded)}
    assert content(plan(known=known), parts.FILES["slurm"]) == content(plan(), parts.FILES["slurm"])
    with pytest.raises(SlurmError, match=r"gpu02 is unknown.*without --limit"):
        plan(known={"head": node("head")})
    with pytest.raises(SlurmError, match="hardware of host head is unknown"):
        plan("gpu02", known={"gpu02": node("gpu02")})


def test_a_group_has_the_nodes_if_none_are_named() -> None:
    facts = {"inventory_name": "gpu02", "groups": {"slurm": ["gpu02"]}}
    facts["fact_of_hosts"] = {"gpu02": node("gpu02")}
    found = slurm.plan(facts, role_options("slurm", controller="gpu02"))
    assert list(found["parts"]) == ["controller", "node"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": "slipway"}, ""),
        ({"cluster": "lab"}, "slurm_cluster_name: found 'slipway'; expected 'lab'"),
        ({"nodes": {"head": node("head")}}, ""),
    ],
)
def test_the_records_of_jobs_are_not_lost(changes: Mapping[str, Any], message: str) -> None:
    known = {"head": node("head", **changes), "gpu02": node("gpu02")}
    if message:
        with pytest.raises(SlurmError, match=message):
            plan(known=known)
    else:
        assert "controller" in plan(known=known)["parts"]
    if changes.get("nodes"):
        # Nodes that follow a new controller would end their jobs.
        known["gpu03"] = node("gpu03")
        known["head"]["nodes"]["gpu03"] = node("gpu03")
        hosts = ["head", "gpu02", "gpu03"]
        moved: dict[str, Any] = {"known": known, "controller": "gpu02", "nodes": hosts}
        for name in ("head", "gpu02", "gpu03"):
            with pytest.raises(SlurmError, match="controller: found gpu02; expected head"):
                plan(name, **moved)


def test_partitions_that_are_removed_are_named(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"applied": "# a\n\nPartitionName=main Nodes=a\nPartitionName=old X=1\n"}
    )
    running = state.read_partitions(f"{root}applied")
    assert running == ["main", "old"]
    assert state.read_partitions(f"{root}none") == []
    known = {"head": node("head", partitions=[*running, 5, "\x1b[2J"]), "gpu02": node("gpu02")}
    assert plan(known=known)["partitions"] == ["old"]
    assert plan("gpu02", known=known)["partitions"] == []


def test_nodes_that_leave_are_named() -> None:
    known = {"head": node("head", nodes={"gpu02": node("two")})}
    assert plan(known=known, nodes=["head"])["leaves"] == ["two"]


@pytest.mark.parametrize(
    ("changes", "leaves"),
    [
        ({}, []),
        ({"memory": 1, "address": "a", "cgroup": False}, []),
        ({"hostname": "two"}, ["gpu02"]),
        ({"cpus": 63, "sockets": 0}, ["gpu02"]),
        ({"gpus": [[0, H100]]}, ["gpu02"]),
        ({"reserved": [0]}, ["gpu02"]),
    ],
)
def test_jobs_of_changed_nodes_are_waited_for(
    changes: Mapping[str, Any], leaves: list[str]
) -> None:
    known = {"head": node("head", nodes={"gpu02": node("gpu02")})}
    known["gpu02"] = node("gpu02", **changes)
    assert plan(known=known)["leaves"] == leaves


def test_slurm_of_others_is_a_conflict_and_nothing_else_is_owned() -> None:
    theirs = node("gpu02", foreign="/etc/slurm/slurm.conf")
    known = {"head": node("head"), "gpu02": theirs}
    owned = plan("gpu02", known=known)["owned"]
    assert list(owned) == ["refused", "obstacles"]
    assert "Slurm that Slipway did not install" in owned["obstacles"][0]["why"]
    # The nodes wait for the controller.
    known = {"head": node("head", foreign="/etc/default/slurmd"), "gpu02": node("gpu02")}
    assert plan("gpu02", known=known)["owned"] == {"refused": []}
    assert "SLURMD_OPTIONS" in plan(known=known)["owned"]["obstacles"][0]["why"]


@pytest.mark.parametrize(
    ("key", "managed", "source", "kinds", "fetches"),
    [
        ("", False, "k", True, True),
        ("k", False, "k", True, False),
        ("other", True, "k", True, True),
        ("other", False, "k", False, False),
        ("other", False, "", False, False),
        ("", False, "", True, False),
    ],
)
def test_a_foreign_key_is_never_replaced(
    key: str, managed: bool, source: str, kinds: bool, fetches: bool
) -> None:
    known = {
        "head": node("head", munge_key=source),
        "gpu02": node("gpu02", munge_key=key, managed=managed),
    }
    found = plan("gpu02", known=known)
    assert ("packages" in found["owned"]) == kinds
    if kinds:
        assert found["parts"]["node"]["fetches_key"] == fetches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster_name": "Lab 1"}, "slurm_cluster_name: found 'Lab 1'"),
        ({"nodes": []}, "slurm_nodes: found no hosts"),
        ({"partitions": []}, "slurm_partitions: found none"),
        ({"partitions": [{"name": "a"}, {"name": "a"}]}, "each name once"),
        ({"partitions": [{"name": "Default"}]}, "other than DEFAULT"),
        ({"partitions": [{"name": "a b"}]}, "invalid name"),
        ({"partitions": [{"name": "a", "max_time": "43200"}]}, "max_time is '43200'.*quotes"),
        ({"partitions": [{"name": "a", "default_time": "1h"}]}, "default_time is '1h'"),
        ({"partitions": [{"name": "a", "nodes": ["x"]}]}, "node x is not in slurm_nodes"),
        ({"partitions": [{"name": "a", "groups": ["a,b"]}]}, "group 'a,b'"),
        ({"partitions": [{"name": "a", "groups": []}]}, "groups is an empty list"),
        ({"partitions": [{"name": "a", "nodes": []}]}, "nodes is an empty list"),
        ({"partitions": [{"name": "a", "default": True}, {"name": "b", "default": True}]}, "a, b"),
    ],
)
def test_settings_that_slurm_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    times = {"default_time": "1:00:00", "max_time": "1-0"}
    if "partitions" in changes:
        changes = {"partitions": [{**times, **one} for one in changes["partitions"]]}
    with pytest.raises(SlurmError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hostname": "HEAD"}, "hosts head and gpu02 have the host name HEAD"),
        ({"hostname": "default"}, "its host name is 'default'"),
        ({"hostname": "a[1-3]"}, r"its host name is 'a\[1-3\]'"),
        ({"address": "a b"}, "slurm_address is 'a b'"),
        ({"address": "fd00::1"}, "expected an IPv4 address or a name"),
        ({"hostname": 5}, "no counts"),
        ({"cpus": "8"}, "no counts"),
        ({"sockets": "1\nProlog=/tmp/x #"}, "host gpu02.*no counts"),
        ({"sockets": 1, "cores": 0}, "no counts"),
        ({"cpus": 10**9, "sockets": 0}, "no counts"),
        ({"gpus": [["0\nNodeName=x", ""]]}, "no counts"),
        ({"gpus": [[0, 5]]}, "no counts"),
        ({"gpus": None}, "no counts"),
    ],
)
def test_hosts_that_slurm_cannot_name_are_refused(changes: Mapping[str, Any], message: str) -> None:
    known = {"head": node("head"), "gpu02": node("gpu02", **changes)}
    with pytest.raises(SlurmError, match=message):
        plan(known=known)


def test_a_node_checks_the_address_of_its_controller() -> None:
    known = {"head": node("head", address="a\nExecStartPre=/x"), "gpu02": node("gpu02")}
    with pytest.raises(SlurmError, match="host head: slurm_address"):
        plan("gpu02", known=known)


def compare(found: list[Any] | None, digest: str, managed: bool) -> list[Any]:
    entry = {"path": "/k", "digest": digest, "managed": managed, "key_host": "head"}
    return list(state.compare_key(entry, {"files": {"/k": found}}))


def test_a_key_is_compared_by_its_digest() -> None:
    right = ["file", "0400", "munge", "munge", "k", 100, 100]
    assert compare(right, "k", managed=False) == []
    assert compare(None, "", managed=False) == [("missing", "a key")]
    assert compare([*right[:4], "x", 100, 100], "k", managed=True) == [
        ("another key", "the key of head")
    ]
    assert len(compare(["file", "0644", "root", "root", "k", 0, 0], "k", managed=True)) >= 1
    with pytest.raises(ConflictError, match="munge key that Slipway did not write"):
        compare([*right[:4], "x", 100, 100], "k", managed=False)


def write(root: Path, files: Mapping[str, str]) -> str:
    """Write files below a folder and return it as a root folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return f"{root}/"


@pytest.mark.parametrize(
    ("pairs", "counts"),
    [
        ([(0, 0), (0, 1), (0, 0), (0, 1)], (4, 1, 2, 2)),
        ([(0, 0), (1, 0)], (2, 2, 1, 1)),
        # One core has a single thread, as where an administrator switched one off.
        ([(0, 0), (0, 0), (0, 1)], (3, 0, 0, 0)),
    ],
)
def test_cpus_are_read(
    tmp_path: Path, pairs: list[tuple[int, int]], counts: tuple[int, ...]
) -> None:
    files = {"cpufreq/x": "", "cpu9/online": "0"}
    for number, (socket, core) in enumerate(pairs):
        folder = f"cpu{number}/topology"
        files |= {f"{folder}/physical_package_id": f"{socket}\n", f"{folder}/core_id": f"{core}\n"}
    write(tmp_path, files)
    found = state.read_cpus(str(tmp_path))
    assert tuple(found[key] for key in ("cpus", "sockets", "cores", "threads")) == counts


def test_gpus_are_read_from_the_driver_and_else_from_device_files(tmp_path: Path) -> None:
    devices = {"dev/nvidia10": "", "dev/nvidia2": "", "dev/nvidiactl": "", "dev/nvidia-uvm": ""}
    root = write(tmp_path, devices)
    assert state.read_gpus(root) == [[2, ""], [10, ""]]
    folder = "proc/driver/nvidia/gpus"
    write(
        tmp_path,
        {
            f"{folder}/0000:41:00.0/information": f"Model: \t {A100}\nDevice Minor: \t 0\n",
            f"{folder}/0000:01:00.0/information": f"Model: \t {H100}\nDevice Minor: \t 2\n",
            f"{folder}/0000:02:00.0/information": "Model: \t Unknown\n",
        },
    )
    assert state.read_gpus(root) == [[2, H100], [0, A100]]


def test_memory_and_controllers_are_read(tmp_path: Path) -> None:
    root = write(tmp_path, {"m": "MemFree: 5 kB\n\nMemTotal:  2097152 kB\n", "c": "cpuset memory"})
    assert state.read_memory(f"{root}m") == 2048
    assert state.read_memory(f"{root}none") == 0
    assert state.has_controllers(f"{root}c")
    assert not state.has_controllers(f"{root}m")
    write(tmp_path, {"applied": "# a\nClusterName=lab\n"})
    assert state.read_setting(f"{root}applied", "ClusterName") == "lab"
    assert state.read_setting(f"{root}none", "ClusterName") == ""


def test_slurm_of_others_is_found(tmp_path: Path) -> None:
    root = write(tmp_path, {"etc/default/slurmd": '#SLURMD_OPTIONS=""\n'})
    assert state.find_foreign(root) == ""
    write(tmp_path, {"etc/slurm/slurm.conf": ""})
    assert state.find_foreign(root) == "/etc/slurm/slurm.conf"
    (tmp_path / "var/lib/slipway/slurm").mkdir(parents=True)
    assert state.find_foreign(root) == ""
    write(tmp_path, {"etc/default/slurmd": "SLURMD_OPTIONS=-v\n"})
    assert state.find_foreign(root) == "/etc/default/slurmd"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_broken_record_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(text)
    assert state.read_nodes(str(path)) == {}
    assert state.read_nodes(f"{path}.none") == {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cpus": 0},
        {"memory": "1\nNodeName=x"},
        {"gpus": [["0 Count=9", ""]]},
        {"gpus": [0]},
        {"gpus": None},
    ],
)
def test_an_answer_of_other_types_is_refused(changes: Mapping[str, Any]) -> None:
    answer = node("a", time=5, **changes)
    if not changes:
        assert slurm_node.check_answer(answer, "trixie") == {**answer, "time": 5.0}
        # Its Slurm 21.08 has no control groups of version 2.
        assert not slurm_node.check_answer(answer, "jammy")["cgroup"]
        return
    with pytest.raises(AnsibleActionFail, match="no counts"):
        slurm_node.check_answer(answer, "trixie")


def test_a_host_cannot_choose_the_words_of_a_conflict() -> None:
    known = {"gpu02": node("gpu02", foreign="\x1b[2J"), "head": node("head")}
    (obstacle,) = plan("gpu02", known=known)["owned"]["obstacles"]
    assert obstacle["path"] == "/etc/default/slurmd"


@pytest.mark.parametrize("seconds", [-600, 600])
def test_a_clock_that_is_far_off_is_refused(seconds: int) -> None:
    slurm_node.refuse_skew(seconds / 10)
    # munge refuses 300 s between two hosts.
    assert 2 * slurm_node.MAX_SKEW_SECONDS < 300
    with pytest.raises(AnsibleActionFail, match="The clock of the host is 600 s"):
        slurm_node.refuse_skew(seconds)


def run_key(
    run_module: RunModule, path: Path, digest: str = "", managed: bool = True, **more: Any
) -> dict[str, Any]:
    entry = {"path": str(path), "digest": digest, "managed": managed, "key_host": "head"}
    return run_module(munge_key, entries=[entry], **more)


def test_a_key_is_made_once_and_never_shown(tmp_path: Path, run_module: RunModule) -> None:
    path = tmp_path / "munge.key"
    assert run_key(run_module, path, check=True, make=True)["changed"]
    assert not path.exists()
    result = run_key(run_module, path, make=True)
    key = path.read_bytes()
    assert len(key) == munge_key.KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o400
    assert base64.b64encode(key).decode() not in json.dumps(result)
    # The user munge comes with the package, which gives the key to this user.
    run_key(run_module, path, make=True)
    assert path.read_bytes() == key


def test_a_key_is_read_and_written(tmp_path: Path, run_module: RunModule) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    assert run_key(run_module, source, read=True)["content"] == ""
    source.write_bytes(bytes(range(128)))
    text = run_key(run_module, source, read=True)["content"]
    assert run_key(run_module, source, read=True, check=True)["content"] == ""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    run_key(run_module, target, digest, content=text)
    assert target.read_bytes() == source.read_bytes()
    failed = run_key(run_module, tmp_path / "c", digest)
    assert "the controller head has no munge key" in failed["msg"]


def test_a_key_of_others_stays(tmp_path: Path, run_module: RunModule) -> None:
    path = tmp_path / "munge.key"
    path.write_text("theirs")
    result = run_key(run_module, path, "k", managed=False, content=base64.b64encode(b"x").decode())
    assert result["failed"]
    assert result["conflicts"][0]["name"] == str(path)
    assert path.read_text() == "theirs"
