# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the installed driver gets into the kernel, and when the host may be rebooted for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection, kernel_module
from ansible_collections.slipway.host.plugins.module_utils.gpu.detection import Holder, KernelModule
from ansible_collections.slipway.host.plugins.module_utils.gpu.kernel_module import (
    Situation,
    Step,
    next_step,
)
from ansible_collections.slipway.host.plugins.module_utils.host import reboot_record
from ansible_collections.slipway.host.plugins.modules import nvidia_module

OLD, NEW = KernelModule("580.173.02", "open"), KernelModule("580.178.04", "open")
PYTHON = Holder(4711, "python3", ("/dev/nvidia0",), "c0ffee" * 10 + "abcd")
DAEMON = Holder(12, "nvidia-persiste", ("/dev/nvidiactl",))
FINE = Situation("6.8.0-149-generic", NEW, NEW)


@pytest.mark.parametrize(
    ("found", "step", "words"),
    [
        (FINE, Step.NOTHING, "580.178.04 is loaded"),
        # sysfs tells the version alone.
        (replace(FINE, loaded=KernelModule("580.178.04")), Step.NOTHING, ""),
        (replace(FINE, loaded=None), Step.LOAD, "580.178.04 is not loaded yet"),
        (replace(FINE, missing=["nvidia_uvm"]), Step.LOAD, "nvidia_uvm is not loaded yet"),
        (replace(FINE, loaded=OLD), Step.RELOAD, "580.173.02 (open) is loaded and 580.178.04"),
        (
            replace(FINE, loaded=KernelModule("580.178.04", "proprietary")),
            Step.RELOAD,
            "580.178.04 (proprietary) is loaded and 580.178.04 (open) is installed",
        ),
        (replace(FINE, loaded=OLD, holders=[DAEMON]), Step.RELOAD, ""),
        # Who is logged in does not lose anything by a reload.
        (replace(FINE, loaded=OLD, users=["ada is logged in at tty1"]), Step.RELOAD, ""),
        (
            replace(FINE, loaded=OLD, holders=[DAEMON, PYTHON]),
            Step.WAIT,
            "process 4711 (python3) in container c0ffeec0ffee uses /dev/nvidia0",
        ),
        (replace(FINE, loaded=None, unwanted=["nouveau"]), Step.REBOOT, "nouveau uses the GPUs"),
        (
            replace(FINE, loaded=None, unwanted=["nouveau"], users=["containers run: web"]),
            Step.WAIT,
            "the host is in use: containers run: web",
        ),
        (
            replace(FINE, installed=None, other_kernels=["6.8.0-150-generic"]),
            Step.REBOOT,
            "6.8.0-149-generic has no NVIDIA module on disk, but 6.8.0-150-generic has one",
        ),
        (replace(FINE, installed=None), Step.FAIL, "/var/lib/dkms/nvidia"),
    ],
)
def test_the_next_step_is_chosen_if_an_idle_host_may_be_rebooted(
    found: Situation, step: Step, words: str
) -> None:
    decided, reason = next_step(found, "idle")
    assert decided is step
    assert words in reason


NOUVEAU = replace(FINE, loaded=None, unwanted=["nouveau"])
BUSY = replace(FINE, loaded=OLD, holders=[PYTHON])


@pytest.mark.parametrize(
    ("found", "reboot", "step", "words"),
    [
        (NOUVEAU, "always", Step.REBOOT, ""),
        (NOUVEAU, "never", Step.WAIT, "Reboot the host (nvidia_driver_reboot is never)"),
        (BUSY, "always", Step.REBOOT, ""),
        (BUSY, "never", Step.WAIT, "Reboot the host"),
        (replace(NOUVEAU, same_machine=True), "always", Step.WAIT, "Ansible runs on this machine"),
        (replace(FINE, loaded=OLD), "never", Step.RELOAD, ""),
        (replace(FINE, loaded=OLD, same_machine=True), "idle", Step.RELOAD, ""),
    ],
)
def test_the_next_step_follows_the_reboot_setting(
    found: Situation, reboot: str, step: Step, words: str
) -> None:
    decided, reason = next_step(found, reboot)
    assert decided is step
    assert words in reason


def test_a_module_that_the_kernel_keeps_needs_a_reboot() -> None:
    found = replace(FINE, loaded=OLD)
    assert kernel_module.after_failed_unload(found, "idle", "nvidia")[0] is Step.REBOOT
    step, reason = kernel_module.after_failed_unload(found, "never", "nvidia")
    assert step is Step.WAIT
    assert "cannot unload kernel module nvidia" in reason


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], []),
        (["UID=0\nUSER=root\nTTY=pts/3\n"], ["root is logged in at pts/3"]),
        # Ansible's own, and systemd's user manager.
        (["USER=operator\nTYPE=unspecified\n", "USER=root\nCLASS=manager\nTTY=\n"], []),
    ],
)
def test_terminals_of_sessions_are_listed(sessions: list[str], expected: list[str]) -> None:
    assert kernel_module.terminals(sessions) == expected


def test_a_reboot_that_changed_nothing_is_not_repeated() -> None:
    reason = next_step(NOUVEAU, "idle")[1]
    for reboot in ("idle", "always"):
        step, words = next_step(replace(NOUVEAU, rebooted_for=reason), reboot)
        assert step is Step.WAIT
        assert "nothing changed. Find the cause" in words
        assert reboot_record.RECORD in words
    # Another reason is another reboot.
    assert next_step(replace(NOUVEAU, rebooted_for="another"), "idle")[0] is Step.REBOOT
    assert next_step(replace(FINE, rebooted_for=reason), "idle")[0] is Step.NOTHING


def test_a_reboot_is_recorded_until_it_is_done(tmp_path: Path, only_root_writes: None) -> None:
    file, boot_id = str(tmp_path / "state/reboot.json"), tmp_path / "boot_id"
    boot_id.write_text("one\n")
    assert reboot_record.read_reason(file, str(boot_id)) == ""
    reboot_record.write_reason("nouveau", file, str(boot_id))
    # The run was interrupted before the reboot.
    assert reboot_record.read_reason(file, str(boot_id)) == ""
    boot_id.write_text("two\n")
    assert reboot_record.read_reason(file, str(boot_id)) == "nouveau"
    Path(file).write_text("{")
    assert reboot_record.read_reason(file, str(boot_id)) == ""
    reboot_record.delete(file)
    assert not Path(file).exists()


@pytest.mark.parametrize(
    ("found", "check", "recorded"),
    [
        (NOUVEAU, False, ["write"]),
        (NOUVEAU, True, []),
        (FINE, False, ["delete"]),
        (FINE, True, []),
        (replace(NOUVEAU, same_machine=True), False, []),
    ],
)
def test_the_module_records_the_reboots_that_it_requests(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: Situation,
    check: bool,
    recorded: list[str],
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(reboot_record, "write_reason", lambda _reason: calls.append("write"))
    monkeypatch.setattr(reboot_record, "delete", lambda: calls.append("delete"))
    outcome(monkeypatch, capsys, Kernel(found), _ansible_check_mode=check)
    assert calls == recorded


# --- the module --------------------------------------------------------------------------------


class Kernel:
    """A host's kernel: answers the module's questions and remembers its commands."""

    def __init__(self, found: Situation, broken: Sequence[str] = ()) -> None:
        self.found, self.broken = found, broken
        self.commands: list[str] = []

    def run(self, command: list[str]) -> tuple[int, str, str]:
        words = " ".join(command)
        self.commands.append(words)
        if words in self.broken:
            return 1, "", "modprobe: ERROR: Key was rejected by service"
        return 0, "", ""


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_root_writes: None) -> None:
    """Keep the record of reboots out of this machine's own folder."""
    file = str(tmp_path / "reboot.json")
    for function in (reboot_record.write_reason, reboot_record.read_reason):
        monkeypatch.setattr(function, "__defaults__", (file, reboot_record.BOOT_ID))
    monkeypatch.setattr(reboot_record.delete, "__defaults__", (file,))


def outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kernel: Kernel, **more: Any
) -> dict[str, Any]:
    """Run the module on a KERNEL and return its result."""
    monkeypatch.setattr(nvidia_module.Host, "run", kernel.run)
    monkeypatch.setattr(nvidia_module.Host, "read_situation", lambda host: kernel.found)
    monkeypatch.setattr(detection, "is_loaded", lambda _root, _name: True)
    arguments = {"modules": [{"name": "nvidia"}, {"name": "nvidia_uvm"}], **more}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        nvidia_module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_missing_module_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(replace(FINE, loaded=None))
    result = outcome(monkeypatch, capsys, kernel)
    assert kernel.commands == [
        "modprobe nvidia",
        "modprobe nvidia_uvm",
        "systemctl is-enabled --quiet nvidia-cdi-refresh.service",
        "systemctl restart nvidia-cdi-refresh.service",
    ]
    assert (result["changed"], result["pending"], result["reboot"]) == (True, False, False)
    assert result["diff"] == {"before": "", "after": "nvidia 580.178.04\n"}


def test_reloading_stops_the_daemons_and_starts_them_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(replace(FINE, loaded=OLD))
    assert outcome(monkeypatch, capsys, kernel)["changed"]
    order = [words.split()[:2] for words in kernel.commands if " is-" not in words]
    assert order[0] == ["systemctl", "stop"]
    assert order[1:7] == [["rmmod", name] for name in kernel_module.UNLOADED]
    assert order[7:9] == [["modprobe", "nvidia"], ["modprobe", "nvidia_uvm"]]
    # What others had loaded comes again.
    others = ["nvidia_peermem", "nvidia_fs", "nvidia_modeset", "nvidia_drm"]
    assert order[9:13] == [["modprobe", name] for name in others]
    assert order[13:] == [["systemctl", "restart"], ["systemctl", "start"]]


def test_modules_that_the_kernel_keeps_are_loaded_again_and_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(replace(FINE, loaded=OLD), broken=["rmmod nvidia_drm"])
    result = outcome(monkeypatch, capsys, kernel, reboot="never")
    assert "rmmod nvidia" not in kernel.commands
    assert "modprobe nvidia_uvm" in kernel.commands
    assert (result["changed"], result["pending"], result["reboot"]) == (False, True, False)
    (waiting,) = result["slipway_waiting"]
    assert waiting.startswith("load of the installed NVIDIA driver waits: cannot unload kernel")


def test_somebodys_module_that_does_not_come_again_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(replace(FINE, loaded=OLD), broken=["modprobe nvidia_fs"])
    result = outcome(monkeypatch, capsys, kernel)
    assert result["changed"]
    assert "modprobe nvidia_fs failed" in str(result["warnings"])


def test_a_driver_that_is_half_unloaded_waits_for_the_reboot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The module on disk does not go with the older one that stays, somebody's own module uses it.
    broken = ["rmmod nvidia", "modprobe nvidia_uvm"]
    kernel = Kernel(replace(FINE, loaded=OLD), broken=broken)
    result = outcome(monkeypatch, capsys, kernel)
    assert (result["step"], result["reboot"], result["pending"]) == ("reboot", True, True)
    assert any(words.startswith("systemctl start") for words in kernel.commands)


def test_a_display_is_tried_before_anything_is_unloaded() -> None:
    assert kernel_module.UNLOADED[:2] == ("nvidia_drm", "nvidia_modeset")


def test_a_refused_signature_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(replace(FINE, loaded=None), broken=["modprobe nvidia"])
    result = outcome(monkeypatch, capsys, kernel)
    assert result["failed"]
    assert "Secure Boot is on" in result["msg"]


@pytest.mark.parametrize("found", [replace(FINE, loaded=None), replace(FINE, loaded=OLD)])
def test_check_mode_touches_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: Situation
) -> None:
    kernel = Kernel(found)
    assert outcome(monkeypatch, capsys, kernel, _ansible_check_mode=True)["changed"]
    assert kernel.commands == []


def test_a_reboot_is_asked_for_and_not_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(NOUVEAU)
    result = outcome(monkeypatch, capsys, kernel)
    assert kernel.commands == []
    assert (result["step"], result["reboot"], result["pending"]) == ("reboot", True, True)
