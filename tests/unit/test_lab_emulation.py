# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Emulated arm64 hosts: the choice of the base, what a machine needs, and the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab import emulation
from lab.base_images import ensure_base
from lab.bases import BASES, base_named, content_key, image_tag
from lab.engine import Engine
from lab.errors import LabError
from tests.unit.fake_docker import FakeDocker


@pytest.mark.parametrize(
    ("base", "architecture", "machine", "found"),
    [
        ("debian-13", None, "x86_64", "debian-13"),
        ("debian-13", None, "riscv64", "debian-13"),
        ("debian-12", "amd64", "x86_64", "debian-12"),
        ("debian-13", "arm64", "x86_64", "debian-13-arm64"),
        ("ubuntu-like-24.04", "arm64", "x86_64", "ubuntu-like-24.04-arm64"),
        ("ubuntu-24.04", "arm64", "aarch64", "ubuntu-24.04"),
    ],
)
def test_only_an_x86_machine_has_another_base_for_arm64(
    base: str, architecture: str | None, machine: str, found: str
) -> None:
    assert emulation.base_for(base, architecture, machine) == found
    assert found in BASES


@pytest.mark.parametrize(
    ("base", "architecture", "machine", "reason"),
    [
        ("debian-13", "amd64", "aarch64", "--architecture amd64: this machine is arm64; expected"),
        ("debian-13", "arm64", "riscv64", "--architecture arm64: this machine is riscv64; expec"),
        ("ubuntu-24.04", "arm64", "x86_64", "of ubuntu-24.04; expected debian-13 or ubuntu-like-"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(
    base: str, architecture: str, machine: str, reason: str
) -> None:
    with pytest.raises(LabError, match=re.escape(reason)):
        emulation.base_for(base, architecture, machine)


GOOD = {
    "sys/kernel/osrelease": "6.12.57+deb13-amd64\n",
    "filesystems": "nodev\tproc\nnodev\tbinfmt_misc\n\text4\n",
    "sys/user/max_user_namespaces": "96365\n",
}


def check(proc: Path, machine: str = "x86_64", **changed: str) -> None:
    for name, text in {**GOOD, **changed}.items():
        file = proc / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    emulation.check_machine(proc, machine)


@pytest.mark.parametrize("release", ["6.7", "6.7.0-generic", "6.18.44", "7.0.0-43-generic"])
def test_a_machine_with_a_newer_kernel_can_emulate(tmp_path: Path, release: str) -> None:
    check(tmp_path, **{"sys/kernel/osrelease": f"{release}\n"})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("sys/kernel/osrelease", "6.6.99-1-amd64\n", "kernel 6.6.99-1-amd64; expected 6.7 or la"),
        ("sys/kernel/osrelease", "5.15.0-99\n", "kernel 5.15.0-99; expected 6.7 or later"),
        ("filesystems", "nodev\tproc\n", "no binfmt_misc in the kernel. Run: modprobe binfmt_m"),
        ("sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces is 0. Run: sysctl "),
    ],
)
def test_a_machine_that_cannot_emulate_says_why(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    with pytest.raises(LabError, match=re.escape(f"cannot emulate arm64: {reason}")):
        check(tmp_path, **{name: text})


def test_another_machine_cannot_emulate(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="this machine is aarch64; expected x86_64"):
        check(tmp_path, "aarch64")


def test_an_arm64_base_gets_the_emulator_of_debian_13(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.base_images.DEBIAN_KEYRING", Path("/"))
    docker, base = FakeDocker(), base_named("ubuntu-like-24.04-arm64")
    assert ensure_base(Engine(docker, tmp_path), base) == image_tag(base)
    ran = [" ".join(argv) for argv in docker.ran]
    (fetch,) = (text for text in ran if ":/emulation " in text)
    assert image_tag(base_named("debian-13")) in fetch
    (bootstrap,) = (text for text in ran if "--architectures=arm64" in text)
    assert re.match(r"\S+/busybox sh \S+/emulate\.sh start mmdebstrap ", bootstrap)
    assert "--customize-hook=copy-in " in bootstrap
    built = [text for text in ran if " --name slipway-base-build-" in text and "emulate" in text]
    assert len(built) == 2
    assert all("--security-opt=seccomp=unconfined" in text for text in built)


def test_key_of_an_arm64_base_changes_with_the_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("debian-13", "debian-13-arm64")
    plain, emulated = (content_key(base_named(name)) for name in names)
    other = tmp_path / "emulate.sh"
    other.write_text("exit\n")
    monkeypatch.setattr("lab.bases.EMULATION_SCRIPT", other)
    assert content_key(base_named(names[0])) == plain
    assert content_key(base_named(names[1])) != emulated
