# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated GPU hosts: driver and container toolkit from stand-in packages, with real apt.

The devices are a made-up PCI tree, the packages bear the vendors' names and hold nothing, and the
Ubuntu hosts are ubuntu-like: Debian 13 that calls itself Ubuntu.  What is real is apt, dpkg,
systemd and the engine.  An arm64 host, which a Grace Hopper is, is not among them: of it the kernel
has the name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import gpu_host, nvidia_packages
from lab.errors import BaseUnavailableError
from lab.host_spec import HostSpec
from lab.hosts import Group, Host
from tests.host.conftest import Run, Site, Tamper

pytestmark = pytest.mark.host

GROUP = "pytest-gpu"
# Debian unstable has an engine with CDI on by default; the others' engine has it off.
UBUNTU, DEBIAN, UNSTABLE = "ubuntu-like-24.04", "debian-13", "debian-sid"
DRIVER, ENGINE, TOOLKIT = "nvidia_driver", "docker_engine", "nvidia_container_toolkit"
# Only what GPUs are about; the other roles have tests of their own.
ROLES = {"slipway_roles": "{{ roles_of_the_host }}"}
OLD, NEW = (f"{version}-0ubuntu0.24.04.1" for version in nvidia_packages.BRANCHES[580])


@dataclass(frozen=True)
class Expected:
    """What becomes of a model: on which base, what is said, and packages that must be there."""

    base: str
    says: str
    packages: tuple[str, ...] = ()


EXPECTED: dict[str, Expected] = {
    "none": Expected(UBUNTU, ""),
    "t4": Expected(
        UNSTABLE,
        "Tesla T4 (Turing): driver branch 550 with proprietary kernel modules (built on the host",
        ("nvidia-kernel-dkms", "nvidia-smi", "firmware-nvidia-gsp", "linux-headers-amd64"),
    ),
    "8xv100": Expected(
        UBUNTU,
        "It is the last branch for these GPUs. Only proprietary modules drive these GPUs.",
        ("linux-modules-nvidia-580-server-generic", "nvidia-utils-580-server"),
    ),
    "8xh100": Expected(
        UBUNTU,
        "8x NVIDIA H100 SXM5 80GB (Hopper): driver branch 580 with open kernel modules (prebuilt",
        (
            "linux-modules-nvidia-580-server-open-generic",
            "nvidia-fabricmanager-580",
            "nvidia-utils-580-server",
        ),
    ),
    "8xb200": Expected(
        UBUNTU,
        "8x NVIDIA B200 (Blackwell): driver branch 580 with open kernel modules (built on the host",
        ("nvidia-driver-pinning-580", "nvidia-dkms-580-open", "nvlsm", "nvidia-fabricmanager"),
    ),
    "rtx-pro-6000": Expected(
        UBUNTU,
        "Only open modules drive this GPU.",
        ("linux-modules-nvidia-580-server-open-generic", "nvidia-utils-580-server"),
    ),
    "gh200": Expected(
        UBUNTU,
        "Only open modules drive this GPU.",
        # Ubuntu has prebuilt modules of this flavour for arm64 alone.
        ("nvidia-dkms-580-server-open", "linux-headers-generic-64k", "nvidia-utils-580-server"),
    ),
    "k80": Expected(
        UBUNTU,
        "2x NVIDIA Tesla K80 (Kepler): driver branch 470 with proprietary kernel modules",
        ("nvidia-dkms-470-server", "nvidia-utils-470-server"),
    ),
    "v100-b200": Expected(UBUNTU, "No driver supports all GPUs of this host"),
}
DRIVEN = [model for model, expected in EXPECTED.items() if expected.packages]
# Models that differ from another one only by the branch or by the kernel modules.
LONG = ("8xv100", "rtx-pro-6000", "k80")
MODELS = [pytest.param(model, marks=pytest.mark.long if model in LONG else ()) for model in DRIVEN]
# The driver differs by model. Engine and toolkit do not, so one host of each source has them.
WITH_ENGINE = ("t4", "8xh100", "8xb200")
WITHOUT_ENGINE = sorted({*DRIVEN} - {*WITH_ENGINE})
REFUSED = "v100-b200"


class GpuSite(Site):
    """A simulated GPU host with its archives."""

    extra = ROLES
    # Docker restarts if the toolkit's runtime changed.
    includes = {TOOLKIT: (ENGINE,)}

    def __init__(self, model: str, group: Group, folder: Path) -> None:
        base = EXPECTED[model].base
        try:
            host = self._host(model, group, folder / model, base)
        except BaseUnavailableError:
            # Unstable may be broken on any day; what needs its engine says so.
            host = self._host(model, group, folder / f"{model}-13", DEBIAN)
        super().__init__(host, folder)
        self.inventory = folder / f"{model}.yml"
        simulated = self.simulated
        archives = simulated.cuda_variables if model == "8xb200" else simulated.variables
        roles = [DRIVER] if model in WITHOUT_ENGINE else [DRIVER, ENGINE, TOOLKIT]
        self.variables = {**archives, "roles_of_the_host": roles}
        self.declare()

    def _host(self, model: str, group: Group, folder: Path, base: str) -> Host:
        self.simulated = gpu_host.prepare(folder, model, base, newest=False)
        mounts = self.simulated.mounts
        return group.ensure(HostSpec(model, base=base, mounts=mounts))

    def declare(self, **variables: Any) -> None:
        """Write the inventory, with what leads to the stand-in archives."""
        super().declare(**self.variables, **variables)

    def version(self, package: str) -> str:
        """Return the version of a package, empty for a package that is not installed."""
        query = f"dpkg-query --show --showformat='${{Version}}' {package} 2>/dev/null || true"
        return self.on(query)

    def log(self) -> str:
        """Return what the stand-ins were called with since the last time."""
        return self.on("cat /run/stand-in.log; : >/run/stand-in.log")


class Fleet(Site):
    """All of them in one inventory."""

    extra = ROLES

    def __init__(self, sites: dict[str, GpuSite], folder: Path) -> None:
        self.sites, self.folder = sites, folder
        self.inventory = folder / "fleet.yml"
        hosts = {name: {**site.connection, **site.variables} for name, site in sites.items()}
        self.inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """The hosts; those that only long tests ask for are among them if these are selected."""
    group = Group(GROUP)
    group.remove()
    folder = tmp_path_factory.mktemp("gpu")
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {call.params.get("model") for call in calls if call}
    models = [model for model in EXPECTED if model not in LONG or model in asked]
    yield Fleet({model: GpuSite(model, group, folder) for model in models}, folder)
    group.remove()


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Run:
    """The first run on all hosts."""
    return fleet.run("site.yml")


def told(run: Run, host: str) -> str:
    """Return all that a run told of one host."""
    return "\n".join(
        str(event["event_data"]["res"].get("msg", ""))
        for event in run.events
        if event["event"] in ("runner_on_ok", "runner_on_failed")
        and event["event_data"]["host"] == host
    )


def reported(run: Run, host: str) -> list[str]:
    """Return the lines in which a run says what it proved on one host."""
    return [
        line
        for event in run.events
        if event["event"] == "runner_on_ok" and event["event_data"]["host"] == host
        for line in event["event_data"]["res"].get("report", ())
    ]


def test_only_the_host_without_a_suitable_driver_fails(first: Run) -> None:
    assert set(first.stats["failures"]) == {REFUSED}, first.output


def test_the_failed_host_is_unchanged(fleet: Fleet, first: Run) -> None:
    said = told(first, REFUSED)
    assert EXPECTED[REFUSED].says in said
    assert "Nothing was changed" in said
    site = fleet.sites[REFUSED]
    assert site.on("ls /etc/apt/preferences.d; ls /etc/modprobe.d | grep slipway || true") == ""
    assert site.version("docker.io") == ""


def test_a_host_without_gpus_runs_no_gpu_task(fleet: Fleet, first: Run) -> None:
    roles = {
        event["event_data"].get("role")
        for event in first.events
        if event["event"] == "runner_on_ok" and event["event_data"]["host"] == "none"
    }
    assert ENGINE in roles
    assert not {role for role in roles if role and role.startswith("nvidia")}
    assert "nvidia" not in fleet.sites["none"].on("cat /etc/docker/daemon.json")


@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_host_gets_the_driver_for_its_hardware(fleet: Fleet, first: Run, model: str) -> None:
    expected, site = EXPECTED[model], fleet.sites[model]
    assert expected.says in told(first, model)
    for package in expected.packages:
        assert site.version(package), f"{package} is not installed"
    # The stand-in module's own words, by modinfo, and what is loaded: the same version.
    loaded = site.on("cat /sys/module/nvidia/version; test -d /sys/module/nvidia_uvm")
    installed = site.on(
        "cd /lib/modules/$(cat /proc/sys/kernel/osrelease); "
        "sed -nE 's,^(.*/nvidia(-current)?.ko):.*,\\1,p' modules.dep | xargs modinfo -F version"
    )
    assert loaded == installed
    assert site.on("nvidia-smi -q -x").startswith("<?xml")


@pytest.mark.parametrize("model", MODELS)
def test_all_driver_packages_are_held(fleet: Fleet, first: Run, model: str) -> None:
    script = (
        "dpkg-query --show --showformat='${db:Status-Want} ${Package}\\n' '*nvidia*' nvlsm "
        "2>/dev/null | grep -v '^unknown' || true"
    )
    states = fleet.sites[model].on(script).splitlines()
    assert states
    assert [line for line in states if not line.startswith("hold ")] == []


@pytest.mark.parametrize("model", MODELS)
def test_the_persistence_daemon_runs(fleet: Fleet, first: Run, model: str) -> None:
    site = fleet.sites[model]
    site.on("systemctl is-enabled nvidia-persistenced; systemctl is-active nvidia-persistenced")
    assert "--no-persistence-mode" not in site.on("cat /run/stand-in.log")


@pytest.mark.parametrize("model", ["8xh100", "8xb200"])
def test_the_fabric_manager_runs_on_hosts_with_switches(
    fleet: Fleet, first: Run, model: str
) -> None:
    fleet.sites[model].on("systemctl is-active nvidia-fabricmanager")


def test_the_second_run_changes_nothing(fleet: Fleet, first: Run) -> None:
    again = fleet.run("site.yml")
    assert set(again.stats["failures"]) == {REFUSED}
    assert again.changed() == set()


@pytest.mark.long
def test_the_roles_alone_change_nothing(fleet: Fleet, first: Run) -> None:
    alone = fleet.run("site.yml", "--limit", f"'!{REFUSED}'", slipway_survey=False)
    assert alone.changed() == set()


def test_plan_names_nothing_on_any_host(fleet: Fleet, first: Run) -> None:
    assert fleet.plan("--limit", f"!{REFUSED}") == (0, set())


# --- the proof that containers keep their GPUs -------------------------------------------------
# Real are engine, containers and `systemctl daemon-reload`; the stand-in for nvidia-smi lists the
# device files that it can open.

VERIFY = "playbooks/verify.yml"
KEPT = "also after systemctl daemon-reload"
LEFT = "docker ps --all --quiet; docker image ls --all --quiet"
# Simulates containers whose devices the engine does not know: they lose the devices when systemd
# reloads its units.
FORGETFUL_SYSTEMCTL = """\
#!/bin/sh
# Stand-in on a simulated host.
/usr/bin/systemctl "$@"
[ "$1" = daemon-reload ] || exit
for container in $(docker ps --quiet); do
    rm -f "/proc/$(docker inspect --format '{{.State.Pid}}' "$container")"/root/dev/nvidia*
done
"""
# A container that got its GPUs by the older way, made of the host's own files.
TRAINING = """
tar -C / -c bin lib lib64 usr/bin/sleep usr/lib/x86_64-linux-gnu/libc.so.6 \
    usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 usr/lib64 | docker import - stand-in/training
docker run --detach --rm --name training --runtime nvidia stand-in/training sleep 300
"""


@pytest.mark.parametrize("model", WITH_ENGINE)
def test_the_first_run_ends_with_a_container_that_keeps_the_gpus(
    fleet: Fleet, first: Run, model: str
) -> None:
    gpus = fleet.sites[model].on("ls /dev/nvidia[0-9] | wc -l")
    engine = fleet.sites[model].on("docker version --format '{{.Server.Version}}'")
    proof = f"a container lists {gpus} of {gpus} by CDI on engine {engine}"
    (proven,) = (line for line in reported(first, model) if proof in line)
    assert proven.startswith("ok  GPUs in containers: ")
    assert proven.endswith(KEPT)


@pytest.fixture(scope="module")
def t4(fleet: Fleet, first: Run) -> GpuSite:
    """A host whose engine has CDI on by default."""
    site = fleet.sites["t4"]
    version = site.on("docker version --format '{{.Server.Version}}'")
    if tuple(map(int, version.split(".")[:2])) < (28, 2):
        pytest.skip(f"{UNSTABLE} is not available, and Debian 13's engine is {version}")
    return site


@pytest.fixture
def forgetful(t4: GpuSite) -> Iterator[None]:
    """Containers lose their GPUs by daemon-reload."""
    file = t4.simulated.folder / "sbin/systemctl"
    file.write_text(FORGETFUL_SYSTEMCTL)
    file.chmod(0o755)
    yield
    file.unlink()


def test_verify_repeats_the_checks_and_leaves_no_container(t4: GpuSite) -> None:
    reloads = "journalctl --quiet --identifier systemd | grep -c 'Reload requested'"
    before = t4.on(reloads)
    run = t4.run(VERIFY)
    assert run.status == "successful", run.output
    assert run.changed() == set()
    assert KEPT in run.output
    assert int(t4.on(reloads)) > int(before)
    assert t4.on(LEFT) == ""


# Throwaway hosts have no kernel log, so this file is one.
SICK = """
sample=/usr/share/nvidia-stand-in/nvidia-smi.xml
cp $sample /root/well.xml
sed -i 's,</gpu>,<gpu_recovery_action>GPU Reset</gpu_recovery_action></gpu>,' $sample
echo '4,0,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=7, GPU has fallen off the bus.' >/dev/kmsg
"""
WELL = "mv /root/well.xml /usr/share/nvidia-stand-in/nvidia-smi.xml; rm -f /dev/kmsg"


def test_faults_of_gpus_are_no_drift_and_fail_every_run(t4: GpuSite) -> None:
    t4.on(SICK)
    try:
        assert t4.plan() == (4, set())
        site, verify = t4.run(), t4.run(VERIFY)
    finally:
        t4.on(WELL)
    assert site.changed() == set()
    for run in (site, verify):
        assert run.status == "failed"
        assert "the driver asks for recovery action 'GPU Reset'" in run.output
        assert "Xid 79: GPU has fallen off the bus" in run.output
    assert t4.plan() == (0, set())


def test_a_missing_nvidia_smi_fails_the_acceptance_check(t4: GpuSite) -> None:
    t4.on("mv /usr/bin/nvidia-smi /root/kept")
    run = t4.run(VERIFY)
    t4.on("mv /root/kept /usr/bin/nvidia-smi")
    assert run.status == "failed"
    message = told(run, "t4")
    assert "GPUs: nvidia-smi not found in " in message
    assert "/usr/bin/nvidia-smi is missing; expected the files as installed" in message


def test_disabled_cgroups_are_named_before_they_break_containers(t4: GpuSite) -> None:
    path = "/etc/nvidia-container-runtime/config.toml"
    # As `nvidia-ctk config --set nvidia-container-cli.no-cgroups=true --in-place` writes it.
    t4.on(f"printf '[nvidia-container-cli]\\nno-cgroups = true\\n' >{path}")
    try:
        assert t4.plan() == (3, {("nvidia_container_toolkit", "obstacles", path)})
        run = t4.run("site.yml")
    finally:
        t4.on(f": >{path}")
    assert run.status == "failed"
    assert f"no-cgroups is true in {path}; expected false" in " ".join(run.output.split())
    assert run.changed() == set()
    assert t4.plan() == (0, set())


def test_lost_gpus_fail_the_acceptance_check(t4: GpuSite, forgetful: None) -> None:
    run = t4.run(VERIFY)
    assert run.status == "failed"
    assert (
        "after systemctl daemon-reload the same container lists 0 of 1 GPUs (Failed to initialize "
        "NVML: Unknown Error); expected all of them"
    ) in told(run, "t4")
    assert t4.on(LEFT) == ""


def test_the_reload_can_be_disabled(t4: GpuSite, forgetful: None) -> None:
    run = t4.run(VERIFY, host_verify_daemon_reload=False)
    assert run.status == "successful", run.output
    assert "skipped systemctl daemon-reload" in run.output


def test_a_running_training_keeps_its_gpus(t4: GpuSite, forgetful: None) -> None:
    t4.on(TRAINING)
    run = t4.run(VERIFY)
    assert run.status == "successful", run.output
    assert "containers training, started with --gpus, would lose" in run.output
    t4.on("docker rm --force training; docker image rm stand-in/training")


def test_without_cdi_the_error_names_the_setting(t4: GpuSite) -> None:
    off = """echo '{"features": {"cdi": false}}' >/etc/docker/daemon.json"""
    t4.on(f"cp /etc/docker/daemon.json /root; {off}; systemctl restart docker")
    run = t4.run(VERIFY)
    assert run.status == "failed"
    # The stand-in for the hook gives nothing.
    assert "set features.cdi to true in /etc/docker/daemon.json" in told(run, "t4")
    assert t4.on(LEFT) == ""
    t4.on("cp /root/daemon.json /etc/docker; systemctl restart docker")


PREFERENCES = "/etc/apt/preferences.d/slipway-nvidia-driver.pref"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/slipway.conf"
# The tampers of a group are applied together, because a survey and a run take time. No two of them
# have a name in common, so plan shows each of them.
TAMPERED: dict[str, dict[str, Tamper]] = {
    "holds, pins and drop-ins": {
        "a hold dropped": (
            "apt-mark -qq unhold libnvidia-compute-580-server",
            {(DRIVER, "packages", "libnvidia-compute-580-server")},
        ),
        "the pin removed": (f"rm {PREFERENCES}", {(DRIVER, "files", PREFERENCES)}),
        "the drop-in edited": (
            f"sed -i s/--persistence-mode/--no-persistence-mode/ {PERSISTENCE}",
            {
                (DRIVER, "files", PERSISTENCE),
                (DRIVER, "units", "nvidia-persistenced.service"),
            },
        ),
        "an early module not loaded": (
            "rm -r /sys/module/nvidia_uvm",
            {(DRIVER, "modules", "nvidia_uvm")},
        ),
        "a hold of the toolkit dropped": (
            "apt-mark -qq unhold libnvidia-container1",
            {(TOOLKIT, "packages", "libnvidia-container1")},
        ),
        "a specification that somebody wrote": (
            "mkdir -p /etc/cdi; cp /run/cdi/nvidia.yaml /etc/cdi/nvidia.yaml",
            {
                (TOOLKIT, "files", "/etc/cdi/nvidia.yaml"),
                (TOOLKIT, "derived", "/var/run/cdi/nvidia.yaml"),
            },
        ),
        "a list of an older installation": (
            "touch /etc/apt/sources.list.d/nvidia-docker.list",
            {(TOOLKIT, "files", "/etc/apt/sources.list.d/nvidia-docker.list")},
        ),
    },
    "an upgraded package and another driver": {
        "one package of the set upgraded": (
            "apt-get -qq update; apt-get -qq install -y --allow-change-held-packages "
            f"nvidia-utils-580-server={NEW} >/dev/null; apt-mark -qq hold nvidia-utils-580-server",
            {(DRIVER, "packages", "nvidia-utils-580-server")},
        ),
        "unattended upgrades let loose": (
            "rm /etc/apt/apt.conf.d/60slipway-nvidia-driver",
            {(DRIVER, "files", "/etc/apt/apt.conf.d/60slipway-nvidia-driver")},
        ),
        "the daemon stopped": (
            "systemctl stop nvidia-persistenced",
            {(DRIVER, "units", "nvidia-persistenced.service")},
        ),
        "another driver loaded": (
            "echo 575.57.08 >/sys/module/nvidia/version",
            # The specification is of the driver that was loaded before.
            {(DRIVER, "modules", "nvidia"), (TOOLKIT, "derived", "/var/run/cdi/nvidia.yaml")},
        ),
    },
    "removed things and another toolkit": {
        "a package of the set removed": (
            "apt-get -qq purge -y --allow-change-held-packages nvidia-utils-580-server >/dev/null",
            {(DRIVER, "packages", "nvidia-utils-580-server")},
        ),
        "an empty initramfs": (
            ": >/boot/initrd.img-6.8.0-149-generic",
            {(DRIVER, "derived", "/boot/initrd.img-6.8.0-149-generic")},
        ),
        "the toolkit at another version": (
            "apt-get -qq install -y --allow-downgrades --allow-change-held-packages "
            "libnvidia-container1=1.20.0-1 libnvidia-container-tools=1.20.0-1 "
            "nvidia-container-toolkit-base=1.20.0-1 nvidia-container-toolkit=1.20.0-1 >/dev/null; "
            "apt-mark -qq hold '*nvidia-container*'; systemctl restart docker",
            {
                (TOOLKIT, "packages", name)
                for name in (
                    "libnvidia-container1",
                    "libnvidia-container-tools",
                    "nvidia-container-toolkit-base",
                    "nvidia-container-toolkit",
                )
            },
        ),
        "the specification lost": (
            "rm /run/cdi/nvidia.yaml",
            {(TOOLKIT, "derived", "/var/run/cdi/nvidia.yaml")},
        ),
    },
    "an edited specification and daemon.json": {
        "the runtime taken out of daemon.json": (
            "sed -i s/nvidia-container-runtime/runc/ /etc/docker/daemon.json;"
            "systemctl restart docker",
            {(ENGINE, "json", "/etc/docker/daemon.json")},
        ),
        "a specification edited, with its old time, and another one": (
            "cd /run/cdi; cp nvidia.yaml /etc/cdi/gpus.json; touch -r nvidia.yaml time;"
            "sed -i s/nosuid/suid/ nvidia.yaml; touch -r time nvidia.yaml; rm time",
            {(TOOLKIT, "derived", "/var/run/cdi/nvidia.yaml")},
        ),
    },
}


@pytest.fixture(scope="module")
def h100(fleet: Fleet, first: Run) -> GpuSite:
    """The H100 host, whose archive has got newer drivers beside the installed ones."""
    site = fleet.sites["8xh100"]
    assert site.version("nvidia-utils-580-server") == OLD
    site.simulated.archive.publish(nvidia_packages.ubuntu())
    return site


@pytest.mark.parametrize("rows", TAMPERED.values(), ids=TAMPERED.keys())
def test_plan_names_and_site_repairs_exactly_the_tampered_things(
    h100: GpuSite, rows: dict[str, Tamper]
) -> None:
    h100.repair(rows)
    # No driver comes by the way.
    assert h100.version("nvidia-utils-580-server") == OLD


def test_nothing_differs_after_the_repairs(h100: GpuSite) -> None:
    assert h100.plan() == (0, set())


# Versions, in the order of these tests: one that never was, then the newest, then back.

BETWEEN = "580.175.01"


def upstream(version: str) -> str:
    return version.partition("-")[0]


def driver_of(site: GpuSite) -> tuple[str, str, str]:
    """Return the version of the installed set, of the loaded module, and of the specification.

    A set of several versions tells them all, so it is none of those that are expected.
    """
    versions = site.on(
        "dpkg-query --show --showformat='${db:Status-Want} ${Version}\n' '*nvidia*-580*' | "
        "grep -oE '^hold 580[0-9.]+' | sort -u"
    )
    loaded = site.on("cat /sys/module/nvidia/version")
    told = site.on("grep -oE 'STAND_IN=[0-9.]+' /run/cdi/nvidia.yaml")
    return versions.removeprefix("hold "), loaded, told.removeprefix("STAND_IN=")


def test_a_withdrawn_version_fails_before_any_package_changes(h100: GpuSite) -> None:
    h100.declare(nvidia_driver_version=BETWEEN, nvidia_driver_version_fallback="none")
    before = h100.on("dpkg-query --show '*'")
    run = h100.run("site.yml")
    assert run.status == "failed"
    assert f"no source has version {BETWEEN}-* any more. Declare another version" in run.output
    assert h100.on("dpkg-query --show '*'") == before
    assert driver_of(h100) == (upstream(OLD),) * 3


def test_a_withdrawn_version_may_be_replaced_by_the_newest_of_its_branch(h100: GpuSite) -> None:
    h100.declare(nvidia_driver_version=BETWEEN)
    run = h100.converge()
    assert "installed the newest instead" in run.output
    assert driver_of(h100) == (upstream(NEW),) * 3
    # The daemons were stopped for it, and run again.
    h100.on("systemctl is-active nvidia-persistenced nvidia-fabricmanager")
    assert h100.plan() == (0, set())


@pytest.mark.long
def test_an_exact_version_restores_all_driver_packages(h100: GpuSite) -> None:
    h100.declare(nvidia_driver_version=upstream(OLD), nvidia_driver_version_fallback="none")
    h100.converge()
    assert driver_of(h100) == (upstream(OLD),) * 3
    assert h100.plan() == (0, set())
    assert h100.converge().changed() == set()


def test_a_driver_in_use_waits_with_the_reason(h100: GpuSite) -> None:
    h100.on("echo 575.57.08 >/sys/module/nvidia/version; touch /run/stand-in.stuck")
    # The kernel of a throwaway host is that of the machine which Ansible runs on.
    run = h100.run("site.yml", nvidia_driver_reboot="always")
    # It ends with exit code 6, and no task failed.
    assert not [event for event in run.events if event["event"] == "runner_on_failed"]
    assert "waiting" in run.output
    assert "cannot unload kernel module nvidia_uvm" in run.output
    assert "Ansible runs on this machine: reboot it yourself" in run.output
    assert "GPUs: not tried: the load of the installed driver waits" in run.output
    # verify runs no role, so a change that waits is drift.
    verified = h100.run(VERIFY)
    assert verified.status == "failed"
    h100.on("rm /run/stand-in.stuck")
    h100.converge()
    assert h100.plan() == (0, set())


def test_nouveau_is_not_unloaded_under_a_running_host(h100: GpuSite) -> None:
    h100.on("mkdir /sys/module/nouveau")
    assert h100.plan() == (2, {(DRIVER, "modules", "nouveau")})
    run = h100.run("site.yml")
    assert "nouveau uses the GPUs until the next boot" in run.output
    h100.on("rmdir /sys/module/nouveau")
    assert h100.plan() == (0, set())
