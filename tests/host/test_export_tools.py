# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The code of other tools, from a package index, accepts the files of `./slipway export`.

No host is created. The tools are large, so these tests are part of the long run only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.slipway.host.plugins.plugin_utils.export import formats
from ansible_collections.slipway.host.plugins.plugin_utils.export.hosts import (
    Gpus,
    Host,
    Selection,
)
from ansible_collections.slipway.host.plugins.plugin_utils.export.ssh_arguments import Jump

pytestmark = [pytest.mark.host, pytest.mark.long]

UV = Path(sys.executable).parent / "uv"
SKYPILOT = """
from sky.ssh_node_pools import utils
pools = utils.get_cluster_config(utils.load_ssh_targets(FILE))
hosts = [host for name in pools for host in utils.prepare_hosts_info(name, pools[name])]
assert [host["use_ssh_config"] for host in hosts] == [False, True], hosts
assert (hosts[0]["user"], hosts[0]["identity_file"]) == ("ubuntu", KEY), hosts
"""
DSTACK = """
import yaml
import dstack._internal.server.app
from dstack._internal.cli.services.configurators import fleet
from dstack._internal.core.models.configurations import parse_apply_configuration
from dstack._internal.core.models.fleets import FleetSpec
from dstack._internal.core.models.profiles import Profile
from dstack._internal.server.services import fleets
parsed = parse_apply_configuration(yaml.safe_load(open(FILE)))
spec = FleetSpec(configuration=parsed, configuration_path=FILE, profile=Profile(name="default"))
fleet._preprocess_spec(spec)
fleets._validate_fleet_spec_and_set_defaults(spec)
proxies = [host.proxy_jump for host in spec.configuration.ssh_config.hosts]
assert proxies[0] is None and proxies[1].hostname == "bastion", proxies
"""
RAY = """
import yaml
from ray.autoscaler._private import util
from ray.autoscaler._private.command_runner import SSHOptions
cluster = util.prepare_config(yaml.safe_load(open(FILE)))
util.validate_config(cluster)
assert cluster["available_node_types"]["local.cluster.node"]["min_workers"] == 1, cluster
auth = cluster["auth"]
options = SSHOptions(auth["ssh_private_key"], None, ProxyCommand=auth["ssh_proxy_command"])
words = options.to_ssh_options_list()
assert "ProxyCommand=ssh -W %h:%p -p 2222 -l admin bastion" in words, words
"""
GPUSTACK = """
import argparse, os, yaml
service = yaml.safe_load(open(FILE))["services"]["gpu02"]
values = {"GPUSTACK_TOKEN": "token", "GPUSTACK_SERVER_URL": "http://192.0.2.1"}
os.environ |= service["environment"] | values | {"GPUSTACK_DATA_DIR": FOLDER}
from gpustack.cmd import start
parser = argparse.ArgumentParser()
start.setup_start_cmd(parser.add_subparsers())
config = start.parse_args(parser.parse_args(["start"]))
assert (config.worker_name, config.server_role().name) == ("gpu02", "WORKER"), config
"""


def selection(key: Path, target: str) -> Selection:
    """Return hosts with the means that the tool has: other ports, or a jump host for all."""
    jump = Jump("bastion", "admin", 2222)
    near = Host("gpu01", "192.0.2.11", 0, "ubuntu", str(key), gpus=Gpus(("NVIDIA L4",)))
    far = Host("gpu02", "192.0.2.12", 2200, "ubuntu", str(key), (jump,))
    if target != "ray":
        return Selection([near, far], ["gpu03 is left out: held: disk swap"])
    jumped = [Host(one.name, one.address, 0, one.user, one.key, (jump,)) for one in (near, far)]
    return Selection(jumped)


@pytest.mark.parametrize(
    ("target", "package", "program"),
    [
        ("skypilot", "skypilot==0.14.1", SKYPILOT),
        ("dstack", "dstack[server]==0.22.5", DSTACK),
        ("ray", "ray[default]==2.60.0", RAY),
        ("gpustack", "gpustack==2.3.0", GPUSTACK),
    ],
)
def test_the_tool_accepts_its_file(target: str, package: str, program: str, tmp_path: Path) -> None:
    key, file, ssh = tmp_path / "key", tmp_path / "file.yaml", tmp_path / "bin/ssh"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    chosen = selection(key, target)
    render = formats.TARGETS[target].render
    file.write_text(render(chosen, formats.Options()), encoding="utf-8")
    assert yaml.safe_load(file.read_text())
    # ssh reads ~/.ssh/config of the account, whatever HOME is.
    config = tmp_path / "config"
    config.write_text(formats.ssh_config(chosen, formats.Options()), encoding="utf-8")
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F "{config}" "$@"\n', encoding="utf-8")
    ssh.chmod(0o755)
    environment = {
        **{name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{ssh.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    subprocess.run([UV, "venv", "--quiet", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env/bin/python")
    install = [str(UV), "pip", "install", "--quiet", "--python", python, package]
    subprocess.run(install, check=True)
    names = f"FILE, KEY, FOLDER = {str(file)!r}, {str(key)!r}, {str(tmp_path / 'data')!r}\n"
    done = subprocess.run(
        [python, "-c", names + program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
