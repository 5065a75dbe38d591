# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of a simulated host with eight H100: named by plan and verify, ended by their remedies.

A test follows the remedy in the words in which the report prints it. A simulated host reboots as
users reboot the host of the demo. What is simulated: GPUs, kernel log, nvidia-smi and its reset.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.host.conftest import ROOT
from tests.host.test_gpu_hosts import DRIVER, ENGINE, EXPECTED, NEW, OLD, TOOLKIT, VERIFY, GpuSite

pytestmark = pytest.mark.host

MODEL = "8xh100"
METRICS = "/var/lib/prometheus/node-exporter"
(PROMTOOL,) = page_commands.run_by("test_prometheus_scrapes_the_metrics_and_alerts_on_a_fault")
# Prometheus as Debian installs it, which reads node_exporter every second.
PROMETHEUS = f"""
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \\
    prometheus prometheus-node-exporter >/dev/null
cat >/etc/prometheus/prometheus.yml <<END
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [slipway.rules.yml]
scrape_configs: [{{job_name: node, static_configs: [{{targets: ["localhost:9100"]}}]}}]
END
cat >/etc/prometheus/slipway.rules.yml <<'END'
{(ROOT / "docs/slipway.rules.yml").read_text()}
END
cd /etc/prometheus
{PROMTOOL.replace("docs/", "")}
promtool check metrics <{METRICS}/slipway.prom
systemctl restart prometheus prometheus-node-exporter
"""
GPU = [f"0000:0{number}:00.0" for number in range(3, 10)]
UUID = "GPU-00000000-0000-0000-0000-00000000000{}"
# An image without GPU libraries, as the catalogue labels it.
CPU_IMAGE = (
    "tar -C /usr/bin -c true | docker import --change 'LABEL io.slipway.image=tiny' "
    "--change 'LABEL io.slipway.variant=cpu' - slipway/tiny:cpu"
)


class SickSite(GpuSite):
    """The host, and what a person does with the remedies that a report prints."""

    def __init__(self, group: Group, folder: Path) -> None:
        self.group = group
        super().__init__(MODEL, group, folder)
        self.variables["roles_of_the_host"] = [
            DRIVER,
            ENGINE,
            TOOLKIT,
            "ml_aliases",
            "host_metrics",
        ]
        self.variables["host_verify_level"] = "quick"
        self.variables["host_metrics_folder"] = METRICS
        self.declare()

    def health(self, **extra: Any) -> tuple[int, dict[str, str]]:
        """Return the exit status of plan, and the remedy of each fault by GPU and fault."""
        done = subprocess.run(
            [
                *(str(ROOT / "slipway"), "plan", "--json", "-i", str(self.inventory)),
                *("-e", json.dumps({**self.extra, **extra})),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            check=False,
        )
        (entry,) = json.loads(done.stdout).values()
        return done.returncode, {
            f"{one['where']} {one['found']}".strip(): one["accepted"] or one["remedy"]
            for one in entry["health"]
        }

    def reboot(self) -> None:
        """Reboot or switch off and on: the container of the host ends, the lab starts it again."""
        self.on("systemctl reboot || true")
        spec = HostSpec(MODEL, base=EXPECTED[MODEL].base, mounts=self.simulated.mounts)
        deadline = time.monotonic() + 120
        while self.group.pending_action(spec).value == "keep" and time.monotonic() < deadline:
            time.sleep(1)
        self.host = self.group.ensure(spec)
        self.declare()

    def follow(self, remedy: str) -> None:
        """Do what a remedy says."""
        text = remedy[0].lower() + remedy[1:]
        if "reset it: " in text:
            for command in text.partition("reset it: ")[2].partition(". ")[0].split("; "):
                self.on(command)
        elif text.startswith("regenerate it: "):
            self.on(text.partition(": ")[2])
        elif text.startswith("run site.yml"):
            self.converge()
        else:
            assert "reboot the host" in text or text.startswith("power the host off"), remedy
            self.reboot()


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SickSite]:
    group = Group("pytest-gpu-faults")
    group.remove()
    site = SickSite(group, tmp_path_factory.mktemp("gpu-faults"))
    site.converge()
    yield site
    group.remove()


# By the argument of stand-in-fault: the GPU, and what is found.
FAULTS: Mapping[str, tuple[str, str]] = {
    "row-pending": (GPU[0], "a memory row waits for its replacement"),
    "recovery": (GPU[1], "the driver asks for recovery action 'GPU Reset'"),
    "xid '48, pid=7, An uncorrectable double bit error'": (
        GPU[2],
        "kernel log: Xid 48: uncorrectable memory error (double bit)",
    ),
    "fabric": (GPU[3], "NVSwitch fabric: state 'In Progress'"),
    "row-failure": (GPU[4], "replacement of a memory row failed"),
    "xid '79, pid=7, GPU has fallen off the bus.'": (
        GPU[5],
        "kernel log: Xid 79: GPU has fallen off the bus",
    ),
    "link": (GPU[6], "PCIe link is 4x wide"),
}
# Remedies that a reset of the GPU completes.
RESETS = ("row-pending", "recovery", "xid '48")


def test_faults_are_named_and_end_by_the_printed_remedies(sick: SickSite) -> None:
    names = {fault: f"{address} {found}" for fault, (address, found) in FAULTS.items()}
    sick.on("\n".join(f"stand-in-fault {fault} {FAULTS[fault][0]}" for fault in FAULTS))
    status, remedies = sick.health()
    assert (status, set(remedies)) == (4, set(names.values()))
    assert sick.plan() == (4, set())
    run = sick.run(VERIFY)
    assert run.status == "failed"
    for address, found in FAULTS.values():
        # The width of the link is a warning, which a failed check leaves out.
        assert f"GPU {address}: {found}" in " ".join(run.output.split()) or "PCIe" in found
    for fault in FAULTS:
        if fault.startswith(RESETS):
            sick.follow(remedies[names[fault]])
            del remedies[names[fault]]
            assert sick.health()[1] == remedies
    # The others need a reboot or a power cycle.
    sick.follow(remedies[names["fabric"]])
    assert sick.health() == (0, {})


def test_a_reset_of_a_gpu_in_use_is_refused(sick: SickSite) -> None:
    sick.on(f"stand-in-fault recovery {GPU[0]}; nvidia-smi -pm 0 -i {GPU[0]}")
    sick.on(
        "sh -c 'exec 9</dev/nvidia0; exec sleep 60' & sleep 1; "
        f"! nvidia-smi --gpu-reset -i {GPU[0]} || exit 1; kill $!; "
        f"sleep 1; nvidia-smi --gpu-reset -i {GPU[0]}; nvidia-smi -pm 1 -i {GPU[0]}"
    )
    assert sick.health() == (0, {})


def test_a_lost_gpu_returns_after_a_power_cycle(sick: SickSite) -> None:
    sick.on("stand-in-fault lost 0000:0a:00.0")
    status, remedies = sick.health()
    assert (status, list(remedies)) == (4, ["7 GPUs are on the PCI bus"])
    run = sick.run(VERIFY)
    assert run.status == "failed"
    assert "GPU health: 7 GPUs are on the PCI bus; expected 8" in " ".join(run.output.split())
    sick.follow(*remedies.values())
    assert sick.health() == (0, {})


def test_a_fabric_manager_of_another_version_is_a_fault_that_site_repairs(sick: SickSite) -> None:
    version = OLD.partition("-")[0]
    installed = sick.version("nvidia-fabricmanager-580")
    assert installed.startswith(version)
    # A package of another source, which depends on what is installed.
    sick.on(
        "sed -i '/^Package: nvidia-fabricmanager-580$/,/^$/"
        f"s/^Version: .*/Version: {NEW.partition('-')[0]}-1/' /var/lib/dpkg/status"
    )
    status, remedies = sick.health()
    (found,) = remedies
    assert status == 4
    assert found.startswith("nvidia-fabricmanager-580 has version ")
    sick.follow(remedies[found])
    assert sick.version("nvidia-fabricmanager-580") == installed
    assert sick.health() == (0, {})


def test_a_specification_of_a_device_that_is_gone_is_a_fault(sick: SickSite) -> None:
    sick.on("mv /dev/nvidia7 /root/nvidia7")
    status, remedies = sick.health()
    (found,) = remedies
    assert status == 4
    assert found.endswith("/nvidia.yaml names missing device files: /dev/nvidia7")
    sick.on("mv /root/nvidia7 /dev/nvidia7")
    sick.on("sed -i s,/dev/nvidia7,/dev/nvidia9, /run/cdi/nvidia.yaml")
    status, remedies = sick.health()
    (found,) = remedies
    assert found.endswith("/nvidia.yaml names missing device files: /dev/nvidia9")
    sick.follow(remedies[found])
    assert sick.health() == (0, {})


def test_drift_of_the_driver_is_named_by_verify_and_repaired_by_site(sick: SickSite) -> None:
    sick.on("systemctl stop nvidia-fabricmanager; echo 575.57.08 >/sys/module/nvidia/version")
    names = {
        (DRIVER, "units", "nvidia-fabricmanager.service"),
        (DRIVER, "modules", "nvidia"),
        (TOOLKIT, "derived", "/var/run/cdi/nvidia.yaml"),
    }
    assert sick.plan() == (2, names)
    run = sick.run(VERIFY)
    assert run.status == "failed"
    said = " ".join(run.output.split())
    assert "units nvidia-fabricmanager.service: inactive -> active" in said
    assert "modules nvidia: version 575.57.08 is loaded -> version 580." in said
    assert "Show it with ./slipway plan, repair it with ./slipway site" in said
    sick.converge()
    assert sick.plan() == (0, set())


@pytest.mark.long
def test_an_accepted_fault_fails_nothing_and_hides_no_other(sick: SickSite) -> None:
    entry = {"gpu": UUID.format(1), "fault": "replacement of a memory row failed"}
    accepted = {"host_verify_accepted_faults": [{**entry, "reason": "RMA 4711"}]}
    sick.on(f"stand-in-fault row-failure {GPU[1]}")
    name = f"{GPU[1]} replacement of a memory row failed"
    assert sick.health()[0] == 4
    assert sick.health(**accepted) == (0, {name: "Accepted: RMA 4711"})
    run = sick.run(VERIFY, **accepted)
    assert run.status == "successful", run.output
    assert "Accepted: RMA 4711" in run.output
    # The same fault of another GPU is a fault.
    sick.on(f"stand-in-fault row-failure {GPU[2]}")
    status, found = sick.health(**accepted)
    assert (status, len(found)) == (4, 2)
    assert sick.run(VERIFY, **accepted).status == "failed"
    sick.reboot()
    status, found = sick.health(**accepted)
    assert status == 0
    assert list(found) == [f"accepted fault '{entry['fault']}' of {entry['gpu']} not found"]


def test_ml_doctor_explains_the_first_failure(sick: SickSite) -> None:
    user = sick.host.user
    healthy = sick.on("ml doctor")
    assert (
        "\nok        computation on the host: 8 GPUs computed correctly with a stand-in" in healthy
    )
    assert "\nnot done  computation in a container: no image" in healthy
    done = sick.try_as(user, "ml doctor")
    assert done.returncode == 1
    assert f"FAILED    Docker group: {user} may not use Docker on " in done.stdout
    sick.on(CPU_IMAGE)
    said = sick.on("ml doctor slipway/tiny:cpu || true")
    assert "FAILED    image: slipway/tiny:cpu is the cpu variant of its image" in said
    sick.on("docker image rm slipway/tiny:cpu; sed -i s,nvidia7,nvidia9, /run/cdi/nvidia.yaml")
    lines = sick.on("ml doctor || true").splitlines()
    assert lines[-1] == "not done  computation in a container: CDI specification failed"
    (said,) = (line for line in lines if line.startswith("FAILED    CDI specification: "))
    assert "names /dev/nvidia9, which this host does not have" in said
    sick.on(said.rpartition(": ")[2])
    assert sick.on("ml doctor") == healthy


def query(sick: SickSite, expression: str) -> list[dict[str, str]]:
    """Return the labels of each series that Prometheus finds."""
    url = f"http://localhost:9090/api/v1/query?query={urllib.parse.quote(expression)}"
    program = f"import urllib.request as r; print(r.urlopen('{url}').read().decode())"
    found = json.loads(sick.on(f'python3 -c "{program}"'))["data"]["result"]
    return [one["metric"] for one in found]


def alerts(sick: SickSite) -> set[tuple[str, str]]:
    """Return name and GPU of each alert that fires."""
    firing = query(sick, "ALERTS{alertstate='firing'}")
    return {(labels["alertname"], labels.get("gpu", "")) for labels in firing}


def wait_for_alerts(sick: SickSite, expected: set[tuple[str, str]]) -> None:
    """Wait until Prometheus has scraped and judged; fail if other alerts fire."""
    deadline = time.monotonic() + 60
    while (found := alerts(sick)) != expected and time.monotonic() < deadline:
        time.sleep(1)
    assert found == expected


@pytest.mark.long
def test_prometheus_scrapes_the_metrics_and_alerts_on_a_fault(sick: SickSite) -> None:
    sick.on(PROMETHEUS)
    # The package of node_exporter may have changed its folder.
    assert sick.run().changed() == set()
    wait_for_alerts(sick, set())
    sick.on(f"stand-in-fault row-failure {GPU[1]}")
    # A run of site without drift refreshes the metrics, and reports no change.
    run = sick.run()
    assert (run.status, run.changed()) == ("failed", set())
    wait_for_alerts(sick, {("SlipwayGpuFault", "1"), ("SlipwayGpuFault", "")})
    uuids = {labels["uuid"] for labels in query(sick, "slipway_gpu_info")}
    assert uuids == {UUID.format(number) for number in range(8)}
    sick.reboot()
    # Failed checks stay until the next verify.
    assert sick.run(VERIFY).status == "successful"
    wait_for_alerts(sick, set())
    sick.on(f"rm {METRICS}/slipway.prom")
    assert sick.plan() == (2, {("host_metrics", "files", f"{METRICS}/slipway.prom")})
    sick.declare(host_metrics_state="absent")
    sick.converge()
    sick.on(f"test ! -e {METRICS}/slipway.prom")
    sick.declare()
    sick.converge()
