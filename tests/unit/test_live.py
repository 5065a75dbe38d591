# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback slipway.host.live in real runs of Ansible, most of them in a terminal in memory."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from tests.contract.tree import ROOT

SECRET = "hunter2-of-the-task"
PLAYBOOK = f"""
- name: Write metrics
  hosts: all:!all
  tasks: []

- name: Apply roles to hosts
  hosts: all
  gather_facts: false
  tasks:
    - name: Install packages
      ansible.builtin.command: sleep {{{{ 3 if inventory_hostname == 'gpu03' else 1 }}}}
    - name: Check the disk
      ansible.builtin.fail:
        msg: "disk \\e[31m[red]full[/red]: 0 GB free; expected 1 GB. Free some space."
      when: inventory_hostname == 'gpu02'
    - name: Write the password
      ansible.builtin.shell: printf %s {SECRET}
      no_log: true
    - name: Write the settings
      ansible.builtin.copy:
        content: "new\\n"
        dest: "{{{{ playbook_dir }}}}/settings-{{{{ inventory_hostname }}}}"
        mode: "0600"
    - name: Report
      ansible.builtin.debug:
        msg: "settings [bold]written"
"""
REASON = "  disk \\x1b[31m[red]full[/red]: 0 GB free; expected 1 GB. Free some space."
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What a line of the view looks like; the rest of a screen is text above it.
HEADER = re.compile(r"\d+:\d\d  (Starting|Apply roles to hosts.*)")
HOST = re.compile(r"gpu0\d  +(\d:\d\d  \S.*|failed  disk .*)")
BELOW = re.compile(r"  \S.*")


def settings(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a run whose state is in a folder."""
    unset = ("NO_COLOR", "CI", "SLIPWAY_OUTPUT", "SLIPWAY_PROGRESS_SOCKET")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {
        **kept,
        "TERM": "xterm-256color",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "slipway.host.live",
        "SLIPWAY_STATE": str(folder / "state"),
        "SLIPWAY_REPORTS": "/dev/null",
        **more,
    }


def command(folder: Path, *words: str, playbook: str = PLAYBOOK) -> list[str]:
    (folder / "play.yml").write_text(playbook, encoding="utf-8")
    hosts = ["-i", "gpu01,gpu02,gpu03,", "-c", "local"]
    return ["ansible-playbook", *hosts, *words, str(folder / "play.yml")]


def run(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run without a terminal."""
    return subprocess.run(
        command(folder, *words), env=settings(folder, **more), capture_output=True, text=True
    )


def log_of(folder: Path) -> Path:
    (log,) = (folder / "state/logs").iterdir()
    return log


def pictures(
    words: list[str], environment: dict[str, str], width: int, height: int
) -> Iterator[list[str]]:
    """Yield what a terminal shows after each output of a command, at last the final picture."""
    screen = pyte.Screen(width, height)
    stream = pyte.ByteStream(screen)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process = subprocess.Popen(
        words, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    while select.select([parent], [], [], 60)[0]:
        try:
            data = os.read(parent, 65536)
        except OSError:
            break
        stream.feed(data)
        # The rest of a picture may still be on its way.
        if not select.select([parent], [], [], 0.01)[0]:
            yield [line.rstrip() for line in screen.display]
    assert process.wait(60) == 2
    os.close(parent)
    yield [line.rstrip() for line in screen.display]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_each_picture_of_a_run_is_whole(tmp_path: Path, width: int, height: int) -> None:
    views = []
    for picture in pictures(command(tmp_path), settings(tmp_path), width, height):
        shown = [line for line in picture if line]
        headers = [number for number, line in enumerate(shown) if HEADER.fullmatch(line)]
        # Nothing of an older picture is left.
        assert len(headers) <= 1, picture
        if headers:
            view = shown[headers[0] + 1 :]
            assert all(HOST.fullmatch(line) or BELOW.fullmatch(line) for line in view), picture
            names = [line.split()[0] for line in view if HOST.fullmatch(line)]
            assert names == sorted(set(names)), picture
            views.append("\n".join(view))
    assert any("gpu03   0:02  Install packages" in view for view in views)
    assert any("waits for gpu03" in view for view in views)
    assert any("gpu02         failed  disk \\x1b[31m[red]full" in view for view in views)
    final = "\n".join(picture)
    assert f"FAILED gpu02: Check the disk\n{REASON}\n" in final
    assert "gpu01: settings [bold]written" in final
    assert "gpu01: done, 3 changes" in final
    assert not HEADER.search(final)
    assert f"Log: {log_of(tmp_path)}" in final.replace("\n", "")


def test_the_log_has_all_of_an_ordinary_run_and_no_secret(tmp_path: Path) -> None:
    for _picture in pictures(command(tmp_path), settings(tmp_path), 80, 24):
        pass
    log = log_of(tmp_path)
    assert log.stat().st_mode & 0o777 == 0o600
    logged = log.read_text(encoding="utf-8")
    for name in tmp_path.glob("settings-*"):
        name.unlink()
    ordinary = run(tmp_path, SLIPWAY_OUTPUT="ansible", ANSIBLE_FORCE_COLOR="false")
    assert ordinary.returncode == 2
    for line in ordinary.stdout.splitlines():
        # The log has no colours, also none of a host. The order of hosts differs from run to run.
        assert COLOUR.sub("", line) in logged
    assert SECRET not in logged
    assert "\x1b" not in logged


def test_without_a_terminal_each_event_is_a_line(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stdout.splitlines()]
    assert lines[:5] == [
        "Apply roles to hosts",
        "changed gpu01, gpu02, gpu03: Install packages",
        "FAILED gpu02: Check the disk",
        REASON,
        "changed gpu01, gpu03: Write the password",
    ]
    assert "\x1b" not in done.stdout
    assert SECRET not in done.stdout
    assert log_of(tmp_path).is_file()


def ordinary_lines(output: str) -> list[str]:
    """The lines of a run without what differs between two runs, in any order."""
    return sorted(
        re.sub(r"(delta|start|end|mtime|src).*", "", line) for line in output.splitlines()
    )


@pytest.mark.parametrize("words", [(), ("-v",), ("--check", "--diff")])
def test_the_ordinary_output_is_that_of_ansible(tmp_path: Path, words: tuple[str, ...]) -> None:
    outputs = []
    chosen = {"SLIPWAY_OUTPUT": "auto" if "-v" in words else "ansible"}
    for more in (chosen, {"ANSIBLE_STDOUT_CALLBACK": "default"}):
        for file in tmp_path.glob("settings-*"):
            file.unlink()
        done = run(tmp_path, *words, **more)
        outputs.append((done.returncode, ordinary_lines(done.stdout), ordinary_lines(done.stderr)))
    assert outputs[0] == outputs[1]
    assert not (tmp_path / "state").exists()


def test_differences_are_shown_if_asked_for(tmp_path: Path) -> None:
    assert "+new" in run(tmp_path, "--diff").stdout
    assert "+new" in log_of(tmp_path).read_text()


def talk(words: list[str], environment: dict[str, str]) -> pexpect.spawn[str]:
    return pexpect.spawn(
        words[0], words[1:], env=environment, dimensions=(24, 80), encoding="utf-8", timeout=60
    )


def test_a_question_is_never_hidden(tmp_path: Path) -> None:
    playbook = (
        "- name: First\n  hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Wait\n      ansible.builtin.command: sleep 1\n"
        "- name: Second\n  hosts: all\n  gather_facts: false\n"
        "  vars_prompt: [{name: colour, prompt: Which colour, private: false}]\n  tasks:\n"
        "    - name: Pause\n      ansible.builtin.pause: {prompt: Continue with return}\n"
        "    - name: Report\n      ansible.builtin.debug: {msg: 'It is {{ colour }}.'}\n"
    )
    session = talk(command(tmp_path, playbook=playbook), settings(tmp_path))
    for question, answer in (("Which colour: ", "blue"), ("Continue with return:", "")):
        session.expect_exact(question)
        # Meanwhile several pictures would be drawn.
        assert session.expect([re.escape("\x1b["), pexpect.TIMEOUT], timeout=2.5) == 1
        session.sendline(answer)
    session.expect_exact("It is blue.")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0


def test_an_interrupted_run_says_what_goes_on_and_how_to_return(tmp_path: Path) -> None:
    session = talk(command(tmp_path), settings(tmp_path))
    session.expect_exact("Install packages")
    session.sendintr()
    output = session.read()
    session.close()
    assert session.exitstatus == 99
    last = output.rpartition("\x1b[J")[2]
    assert "\x1b[?25h" in last
    assert "gpu03 was interrupted in: Install packages" in last
    assert "Run the same command again" in last
    assert "Log: " in last


def test_a_narrower_terminal_leaves_nothing_behind(tmp_path: Path) -> None:
    session = talk(command(tmp_path), settings(tmp_path))
    screen = pyte.Screen(80, 24)
    stream = pyte.Stream(screen)
    session.expect_exact("waits for gpu03")
    stream.feed(f"{session.before}{session.after}")
    session.setwinsize(24, 120)
    screen.resize(24, 120)
    stream.feed(session.read())
    session.close()
    text = "\n".join(line.rstrip() for line in screen.display)
    assert not HEADER.search(text)
    assert REASON in text


BESIDE = """
from ansible.plugins.callback import CallbackBase
class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "notification", "beside"
    def v2_runner_on_ok(self, result):
        self.write(f"ok {result.host.name} {result.task.name}")
    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.write(f"failed {result.host.name} {result.task.name}")
    def v2_playbook_on_stats(self, stats):
        self.write("end")
    def write(self, line):
        with open(__file__ + ".log", "a") as log:
            log.write(line + "\\n")
"""


def test_other_callbacks_get_every_event(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "beside.py").write_text(BESIDE, encoding="utf-8")
    done = run(tmp_path, ANSIBLE_CALLBACK_PLUGINS=str(plugins))
    assert "gpu01: done, 3 changes" in done.stdout
    lines = (plugins / "beside.py.log").read_text().splitlines()
    assert "failed gpu02 Check the disk" in lines
    assert {f"ok gpu0{number} Install packages" for number in (1, 2, 3)} <= {*lines}
    assert (len(lines), lines[-1]) == (11, "end")


def test_an_empty_variable_does_not_mean_the_current_folder(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    empty = {"SLIPWAY_REPORTS": "", "SLIPWAY_REPORT": "", "SLIPWAY_STATE": "", "HOME": str(home)}
    done = subprocess.run(
        command(tmp_path),
        cwd=here,
        env=settings(tmp_path, **empty),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "HOST " in done.stdout, done.stderr
    assert list(here.iterdir()) == []
    assert list((home / ".ansible/slipway/logs").iterdir())
