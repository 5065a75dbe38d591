# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Aliases and `ml` on real hosts, used by people who are not root.

The image is a stand-in that is built in seconds. Its server checks the token as Jupyter does.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pexpect
import pytest

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group, Host
from tests.host.conftest import ROOT, Site, Tamper

pytestmark = pytest.mark.host

GROUP = "pytest-aliases"
IMAGE = "slipway/testlab:cpu"
TOKEN = r"token=([0-9a-f]{48})"
# Packages that the tests need in addition to those of the role.
TOOLS = "cron zsh fish xvfb xauth docker-registry chromium"


Terminal: TypeAlias = "pexpect.spawn[str]"


def wait_for_match(terminal: Terminal, pattern: str) -> re.Match[str]:
    """Wait until a terminal shows text that matches; return the match."""
    terminal.expect(pattern)
    assert isinstance(terminal.match, re.Match)
    return terminal.match


class Lab(Site):
    """A host with three people: alice and bob may use Docker, carol may not."""

    def __init__(self, host: Host, folder: Path, catalogue: Path) -> None:
        super().__init__(host, folder)
        self.catalogue = catalogue

    def people(self, **variables: Any) -> None:
        """Declare the people, the stand-in image, and these variables."""
        key = self.host.private_key_file.with_suffix(".pub").read_text().strip()
        self.declare(
            **{
                "ml_catalogue_folder": str(self.catalogue),
                "ml_images_present": ["testlab"],
                "ml_services_instances": [],
                "ml_aliases_contact": "Dana (dana@lab.example)",
                "user_access_groups": [{"name": "research"}],
                "user_access_users": [
                    {"name": "alice", "docker": True, "groups": ["research"], "keys": [key]},
                    {"name": "bob", "docker": True, "keys": [key]},
                    {"name": "carol", "keys": [key]},
                ],
                **variables,
            }
        )

    def terminal(self, user: str, command: str = "") -> Terminal:
        """Return a terminal of a user on the host, at the prompt of a shell."""
        words = [*self.ssh(user, "-tt"), *([command] if command else [])]
        child = pexpect.spawn(
            words[0], words[1:], encoding="utf-8", timeout=30, dimensions=(50, 200)
        )
        child.expect(r"[$%>] ")
        return child

    def url(self, user: str) -> str:
        """Return the address of the user's page, with the token."""
        return self.as_user(user, "ml url testlab | sed -n 's/^notebook *//p'")

    def get(self, user: str, url: str) -> str:
        """Open a page on the host; return its text or the status of the error."""
        code = (
            "import sys, urllib.request, urllib.error\n"
            "try: print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())\n"
            "except urllib.error.HTTPError as error: print(error.code)"
        )
        return self.as_user(user, f"python3 -c {shlex.quote(code)} {shlex.quote(url)}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Group]:
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the catalogue for tests."""
    copy = tmp_path_factory.mktemp("catalogue") / "images"
    return Path(shutil.copytree(ROOT / "tests/fixtures/catalogue", copy))


@pytest.fixture(scope="module")
def lab(hosts: Group, catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A host with the stand-in image, its aliases, and the programs for the tests."""
    lab = Lab(
        hosts.ensure(HostSpec("lab-1", base=ENGINE_BASE)),
        tmp_path_factory.mktemp("lab-1"),
        catalogue,
    )
    lab.people()
    checked = lab.run("site.yml", "--check", "--diff")
    assert checked.status == "successful", checked.output
    lab.converge()
    lab.on(f"apt-get -qq install -y --no-install-recommends {TOOLS} >/dev/null 2>&1")
    return lab


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the containers that a failed test left."""
    yield
    if "lab" in request.fixturenames:
        lab: Lab = request.getfixturevalue("lab")
        lab.on("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force >/dev/null")


# A person at a terminal.


def test_a_notebook_needs_the_token_and_saves_files_of_the_user(lab: Lab, tmp_path: Path) -> None:
    alice = lab.terminal("alice")
    alice.sendline("testlab")
    url, token = wait_for_match(
        alice, rf"notebook at (http://127\.0\.0\.1:8888/lab\?{TOKEN})"
    ).groups()
    alice.expect(r"alice@testlab:/code\$ ")
    alice.sendline("j8")
    alice.expect("serving")

    assert "Test lab of alice" in lab.get("alice", url)
    assert lab.get("alice", url.replace(token, "0" * 48)) == "403"
    assert lab.get("alice", url.partition("?")[0]) == "403"
    page = tmp_path / "page.png"
    shot = "cd && chromium --headless --no-sandbox --disable-gpu --screenshot=page.png"
    lab.as_user("alice", f"{shot} {shlex.quote(url)} && base64 page.png >page.txt")
    page.write_bytes(subprocess.run(
        ["base64", "--decode"], input=lab.as_user("alice", "cat page.txt").encode(),
        capture_output=True, check=True,
    ).stdout)  # fmt: skip
    assert page.read_bytes().startswith(b"\x89PNG")
    assert page.stat().st_size > 4000, "an empty page is smaller"

    put = "import sys, urllib.request as r;r.urlopen(r.Request(sys.argv[1], b'{}', method='PUT'))"
    note = url.replace("/lab?", "/notes/first.ipynb?")
    lab.as_user("alice", f"python3 -c {shlex.quote(put)} {shlex.quote(note)}")
    assert lab.on("stat --format '%U:%G %a' /home/alice/code/first.ipynb") == "alice:alice 644"

    alice.sendcontrol("c")
    alice.expect(r"alice@testlab:/code\$ ")
    alice.sendline("exit 3")
    alice.expect(r"alice@lab-1:~\$ ")
    alice.sendline("echo status $?")
    alice.expect("status 3")
    assert lab.on("docker ps --all --quiet") == ""


def test_two_people_have_different_ports_names_and_tokens(lab: Lab) -> None:
    alice, bob = lab.terminal("alice"), lab.terminal("bob")
    address = rf"notebook at http://127\.0\.0\.1:(\d+)/lab\?{TOKEN}"
    alice.sendline("testlab")
    port, theirs = wait_for_match(alice, address).groups()
    assert port == "8888"
    bob.sendline("testlab")
    bob.expect("port 8888 is in use; notebook is at port 8889")
    port, mine = wait_for_match(bob, address).groups()
    assert port == "8889" and mine != theirs
    for person, name in ((alice, "alice"), (bob, "bob")):
        person.expect(rf"{name}@testlab:/code\$ ")
        person.sendline("j8")
        person.expect("serving")

    assert "Test lab of bob" in lab.get("bob", lab.url("bob"))
    assert lab.get("bob", f"http://127.0.0.1:8888/lab?token={mine}") == "403"
    running = json.loads(lab.as_user("bob", "ml list --json"))["running"]
    listed = {one["name"]: one for one in running}
    assert {name: one["user"] for name, one in listed.items()} == {
        "alice-testlab": "alice",
        "bob-testlab": "bob",
    }
    assert listed["alice-testlab"]["urls"]["notebook"] == "http://127.0.0.1:8888/lab"
    for words, what in (
        ("url alice-testlab", "see its addresses"),
        ("logs alice-testlab", "read its output"),
        ("stop alice-testlab", "stop it"),
        ("commit alice-testlab bob/stolen:1", "commit it"),
    ):
        refused = lab.try_as("bob", f"ml {words}")
        assert refused.returncode == 1
        assert refused.stderr.strip() == (
            f"ml: container alice-testlab belongs to alice; you cannot {what}"
        )
    seen = lab.as_user(
        "bob",
        "ml list; ml list --json; ml url; ps -eo args; docker inspect alice-testlab;"
        "docker logs alice-testlab; cat /home/alice/.local/state/slipway/token || true",
    )
    assert theirs not in seen and mine in seen
    assert lab.as_user("bob", "ml stop") == "bob-testlab"
    assert lab.as_user("alice", "docker ps --format '{{.Names}}'") == "alice-testlab"


def test_many_starts_at_once_do_not_collide(lab: Lab) -> None:
    script = "for i in 1 2 3 4 5; do testlab --detach sleep 60 & done; wait"
    started = lab.try_as("alice", script)
    assert "already" not in started.stderr
    ports = lab.as_user("alice", "docker ps --format '{{.Ports}}'")
    assert sorted(re.findall(r":(\d+)->8888", ports)) == ["8888", "8889", "8890", "8891", "8892"]
    assert len(lab.as_user("alice", "ml stop --all").split()) == 5


# Connections.


def wait_for(
    lab: Lab, expected: str, command: str = "docker ps --all --format '{{.Names}}'"
) -> None:
    """Wait until a command on the host prints the expected text, at most 40 seconds."""
    shell = f'for i in $(seq 200); do [ "$({command})" = {shlex.quote(expected)} ] && exit; '
    lab.on(f"{shell} sleep 0.2; done; {command}; exit 1")


def test_a_container_ends_with_its_connection(lab: Lab) -> None:
    command = "testlab -q sh -c 'trap : HUP; while :; do sleep 1; done'"
    # ssh without a terminal: the host sends no signal, and nothing is written to the closed pipe.
    with subprocess.Popen([*lab.ssh("alice"), command], stdin=subprocess.PIPE) as connection:
        wait_for(lab, "alice-testlab")
        connection.kill()
    wait_for(lab, "")
    # A terminal that is closed.
    terminal = lab.terminal("alice")
    terminal.sendline(command)
    wait_for(lab, "alice-testlab")
    terminal.close(force=True)
    wait_for(lab, "")
    # A docker command that is killed.
    with subprocess.Popen([*lab.ssh("alice"), command], stdin=subprocess.PIPE) as connection:
        wait_for(lab, "alice-testlab")
        lab.on("pkill -KILL --full '^docker run'")
        connection.wait(timeout=30)
    wait_for(lab, "")


def test_detached_containers_and_nohup_survive_the_connection(lab: Lab) -> None:
    lab.as_user("alice", "testlab -q --detach sleep 300")
    with subprocess.Popen([*lab.ssh("alice"), "nohup testlab -q sleep 301"]) as connection:
        wait_for(lab, "alice-testlab-2\nalice-testlab")
        connection.kill()
    wait_for(lab, "0", "pgrep --count --uid alice sshd")
    assert lab.on("docker ps --format '{{.Names}}'") == "alice-testlab-2\nalice-testlab"


def test_ended_detached_containers_keep_logs_and_status(lab: Lab) -> None:
    lab.as_user("alice", "testlab -q --detach sh -c 'echo finished; exit 3'")
    wait_for(lab, "exited", "docker ps --all --format '{{.State}}'")
    assert lab.as_user("alice", "ml logs") == "finished"
    assert lab.as_user("alice", "ml logs testlab") == "finished"
    assert "alice-testlab" not in lab.as_user("alice", "ml list")
    (ended,) = json.loads(lab.as_user("bob", "ml list --all --json"))["ended"]
    assert (ended["name"], ended["user"], ended["status"]) == ("alice-testlab", "alice", 3)
    assert re.search(r"alice-testlab +alice +\S+ +3 ", lab.as_user("bob", "ml list --all"))
    refused = lab.try_as("bob", "ml remove alice-testlab")
    assert refused.stderr == "ml: container alice-testlab belongs to alice; you cannot remove it\n"
    assert lab.as_user("alice", "ml remove") == "alice-testlab"
    assert lab.try_as("alice", "ml logs").stderr == "ml: you have no container\n"
    # Neither does a program that does not exist stay unseen.
    lab.try_as("alice", "testlab -q --detach no-such-program")
    wait_for(lab, "exited", "docker ps --all --format '{{.State}}'")
    (ended,) = json.loads(lab.as_user("alice", "ml list --all --json"))["ended"]
    assert (ended["name"], ended["status"]) == ("alice-testlab", 127)
    assert lab.as_user("alice", "ml remove") == "alice-testlab"


# Scripts.


def test_input_output_and_exit_status_pass_through(lab: Lab) -> None:
    done = lab.try_as(
        "alice", "testlab python3 -c 'import sys; print(sys.stdin.read()[::-1]); sys.exit(42)'",
        stdin="stressed",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (42, "desserts\n")
    assert done.stderr == "testlab: no GPU on this host; the container runs without one\n"
    killed = lab.try_as("alice", "testlab -q sh -c 'kill -9 $$'")
    assert killed.returncode == 137
    assert lab.try_as("alice", "testlab --image none true").returncode == 125


def test_a_container_is_the_caller_where_the_caller_is(lab: Lab) -> None:
    lab.on("install -d -o root -g research -m 2770 /srv/shared")
    lab.as_user("alice", "mkdir -p code/deep 'code/course'")
    show = "sh -c 'id -un; id -Gn; pwd; echo $USER'"
    output = lab.as_user("alice", f"cd code/deep && testlab -q {show}")
    assert output.splitlines()[0::2] == ["alice", "/code/deep"]
    assert "research" in output.splitlines()[1]
    assert output.splitlines()[3] == "alice"
    assert lab.as_user("alice", "testlab -q pwd") == "/code/course"
    lab.as_user("alice", "testlab -q touch /shared/ours /data/mine")
    assert lab.on("stat --format %U:%G /srv/shared/ours") == "alice:research"
    assert lab.on("stat --format %U:%G /home/alice/data/mine") == "alice:alice"
    assert "Permission denied" in lab.try_as("bob", "testlab -q touch /shared/theirs").stderr


def test_print_shows_the_command_and_it_works(lab: Lab) -> None:
    shown = lab.as_user("alice", "testlab --print cat /etc/hostname")
    assert "--init" in shown and "--user=" in shown and "127.0.0.1:8888:8888" in shown
    assert lab.on("docker ps --all --quiet") == ""
    assert lab.as_user("alice", shown) == "testlab"


def test_aliases_work_from_cron(lab: Lab) -> None:
    lab.as_user(
        "alice",
        "echo '* * * * * /usr/local/bin/testlab -q sh -c \"id -un\" >$HOME/cron.txt 2>&1'"
        " | crontab -",
    )
    try:
        written = "grep -qs . /home/alice/cron.txt"
        lab.on(f"for i in $(seq 80); do {written} && exit; sleep 1; done; exit 1")
        assert lab.on("cat /home/alice/cron.txt") == "alice"
    finally:
        lab.as_user("alice", "crontab -r")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish"])
def test_aliases_are_commands_of_every_shell(lab: Lab, shell: str) -> None:
    assert lab.as_user("alice", f"{shell} -c 'test_lab -q echo from {shell}'") == f"from {shell}"


def test_shells_complete_options_and_images(lab: Lab) -> None:
    offered = lab.as_user("alice", 'fish -c \'complete -C "testlab --pr"; complete -C "ml sto"\'')
    assert offered.split() == ["--print", "stop"]
    for shell, setup in (("bash", ":"), ("zsh -f", "autoload -Uz compinit && compinit -u")):
        person = lab.terminal("alice", f"exec {shell} -i")
        person.sendline(f"{setup}; echo rea''dy")
        person.expect("ready")
        person.expect(r"[$%] ")
        person.send("testlab --pri\t")
        person.expect("testlab --print")
        person.send("\x15ml save tes\t")
        person.expect("ml save testlab")
        person.close(force=True)


# Settings and access.


SETTINGS = """\
[*]
env.MODE = fast
[testlab]
/code = ~/work
port.notebook = 9100
quiet = yes
"""


def test_settings_in_the_users_file_apply(lab: Lab) -> None:
    lab.as_user(
        "bob",
        "mkdir -p .config/slipway work && cat >.config/slipway/aliases.ini",
        stdin=SETTINGS,
    )
    try:
        started = lab.try_as(
            "bob", "testlab sh -c 'echo $MODE $SLIPWAY_PORT_NOTEBOOK >/code/output'"
        )
        assert (started.returncode, started.stderr) == (0, "")
        assert lab.as_user("bob", "cat work/output") == "fast 9100"
        assert lab.as_user("bob", "testlab -e MODE sh -c 'echo $MODE'; true") == ""
        assert "127.0.0.1:9200:8888" in lab.as_user("bob", "testlab --port notebook=9200 --print")
        lab.as_user("bob", "echo 'gpu = 0' >>.config/slipway/aliases.ini")
        wrong = lab.try_as("bob", "testlab true")
        assert wrong.returncode == 125
        assert "section [testlab]: unknown setting gpu. Did you mean gpus?" in wrong.stderr
    finally:
        lab.as_user("bob", "rm -r .config/slipway")


@pytest.mark.parametrize("command", ["testlab", "testlab --print", "ml list", "ml save testlab x"])
def test_a_user_without_docker_learns_the_contact(lab: Lab, command: str) -> None:
    refused = lab.try_as("carol", command)
    assert refused.returncode in (1, 125)
    assert refused.stderr.strip().endswith(
        "carol may not use Docker on lab-1. Ask Dana (dana@lab.example) to set "
        "'docker: true' for you in user_access_users"
    )
    assert refused.stderr.count("\n") == 1


# Images.


def test_installed_software_can_be_committed_and_pushed(lab: Lab) -> None:
    lab.as_user("alice", "testlab -q --root --detach sh -c 'echo new >/opt/new; sleep 300'")
    kept = lab.try_as("alice", "ml commit testlab alice/lab:1")
    assert "To start it, run: testlab --image alice/lab:1" in kept.stdout
    assert "the image cannot be built again" in kept.stderr
    lab.as_user("alice", "ml stop testlab")
    assert lab.as_user("alice", "testlab -q --image alice/lab:1 sh -c 'cat /opt/new; id -un'") == (
        "new\nalice"
    )
    labels = json.loads(
        lab.as_user("alice", "docker image inspect alice/lab:1 --format '{{json .Config.Labels}}'")
    )
    assert labels["io.slipway.image"] == "testlab"
    assert labels["io.slipway.committed-by"] == "alice"
    assert labels["io.slipway.digest"] == ""
    assert labels["io.slipway.committed-from-digest"] == digests(lab)[IMAGE]

    target = "127.0.0.1:5000/alice/lab:1"
    refused = lab.try_as("alice", f"ml push alice/lab:1 {target}")
    assert refused.returncode == 1
    assert "Log in first: docker login 127.0.0.1:5000" in refused.stderr
    assert target not in lab.as_user("alice", "docker image ls")
    lab.on(
        "sed -i '/^auth:/,/^[a-z]*:$/{/^auth:/d;/^  /d}' /etc/docker/registry/config.yml;"
        "systemctl restart docker-registry; sleep 2"
    )
    pushed = lab.as_user("alice", f"ml push alice/lab:1 {target}")
    assert re.fullmatch(r"127\.0\.0\.1:5000/alice/lab@sha256:[0-9a-f]{64}", pushed)


def digests(lab: Lab) -> dict[str, str]:
    """Return the context digest of each image in `ml list`."""
    listed = json.loads(lab.as_user("alice", "ml list --json"))
    return {image["reference"]: image["digest"] for image in listed["images"]}


def test_a_full_disk_and_a_cut_archive_are_errors(lab: Lab) -> None:
    lab.on("mkdir -p /mnt/small && mount -t tmpfs -o size=8m,mode=1777 tmpfs /mnt/small")
    full = lab.try_as("alice", "ml save testlab /mnt/small/lab.zst")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert lab.on("ls -A /mnt/small") == ""
    lab.as_user("alice", "ml save testlab lab.zst && head -c 1000000 lab.zst >cut.zst")
    again = lab.try_as("alice", "ml save testlab lab.zst")
    assert again.stderr == "ml: file lab.zst already exists. To replace it, add: --force\n"
    cut = lab.try_as("alice", "ml load cut.zst")
    assert cut.returncode == 1
    assert "premature end" in cut.stderr


# Windows.


def test_a_window_is_shown_with_a_warning(lab: Lab) -> None:
    shown = lab.try_as(
        "alice",
        "cookie=$(mcookie); xauth -q add :7 . $cookie 2>/dev/null\n"
        "xauth -q add localhost:8 . $cookie\n"
        "Xvfb :7 -auth .Xauthority >/dev/null 2>&1 & first=$!\n"
        "Xvfb :8 -listen tcp -nolisten unix -auth .Xauthority >/dev/null 2>&1 & second=$!\n"
        "sleep 3\n"
        "DISPLAY=:7 ml gui testlab window\n"
        # As with ssh -X: a container cannot reach such a display itself.
        "DISPLAY=localhost:8 ml gui testlab window\n"
        "XAUTHORITY=/dev/null DISPLAY=:7 ml gui testlab window\n"
        "kill $first $second",
    )
    assert shown.stdout.splitlines() == ["window: shown", "window: shown", "window: refused"]
    assert shown.stderr.count("X11 does not isolate programs") == 3
    without = lab.try_as("alice", "ml gui testlab window")
    assert without.returncode == 1 and "connect with: ssh -X" in without.stderr


# Owned state.


def test_survey_and_role_agree_that_nothing_differs(lab: Lab) -> None:
    assert lab.converge().changed() == set()
    assert lab.plan() == (0, set())
    assert lab.converge(slipway_survey=False).changed() == set()


PROGRAM = "/usr/local/lib/slipway/slipway_ml/main.py"
# The tampers of a group are applied together, because a survey and a run take time. No two of them
# have a name in common, so plan shows each of them.
TAMPERED: dict[str, dict[str, Tamper]] = {
    "removed and edited files": {
        "a command removed": (
            "rm /usr/local/bin/testlab",
            {("ml_aliases", "links", "/usr/local/bin")},
        ),
        "the program edited": (f"echo '#' >>{PROGRAM}", {("ml_aliases", "files", PROGRAM)}),
        "the program not executable": (
            "chmod 0644 /usr/local/lib/slipway/ml",
            {("ml_aliases", "files", "/usr/local/lib/slipway/ml")},
        ),
        "the declaration edited": (
            "sed -i s/8888/9999/ /etc/slipway/aliases.json",
            {("ml_aliases", "files", "/etc/slipway/aliases.json")},
        ),
        "a completion removed": (
            "rm /usr/local/share/zsh/site-functions/_slipway",
            {("ml_aliases", "files", "/usr/local/share/zsh/site-functions/_slipway")},
        ),
        "a package removed": (
            "apt-get -qq purge -y zstd >/dev/null",
            {("ml_aliases", "packages", "zstd")},
        ),
    },
    "a command of no image": {
        "a command of no image": (
            "ln -s /usr/local/lib/slipway/ml /usr/local/bin/oldlab",
            {("ml_aliases", "links", "/usr/local/bin")},
        ),
    },
}


@pytest.mark.parametrize("rows", TAMPERED.values(), ids=TAMPERED.keys())
def test_plan_names_and_site_repairs_exactly_the_tampered_things(
    lab: Lab, rows: dict[str, Tamper]
) -> None:
    lab.repair(rows)
    assert lab.as_user("alice", "testlab -q echo works") == "works"


def test_nothing_differs_after_the_repairs(lab: Lab) -> None:
    assert lab.plan() == (0, set())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/usr/bin/testtool", "would hide the existing command /usr/bin/testtool"),
        pytest.param(
            "/usr/local/bin/testtool",
            "/usr/local/bin/testtool: found something that is not a link",
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_existing_command_is_never_hidden_or_replaced(lab: Lab, path: str, words: str) -> None:
    lab.people(ml_aliases_settings={"testtool": {"enabled": False}})
    lab.converge()
    lab.on(f"echo mine >{path}")
    lab.people()
    try:
        for extra in ({}, {"slipway_survey": False}):
            run = lab.run("site.yml", **extra)
            assert run.status == "failed"
            assert words in " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.output).split())
        # The first run did all the rest.
        assert run.changed() == set()
        assert lab.on(f"cat {path}") == "mine"
    finally:
        lab.on(f"rm {path}")
        lab.converge()


def test_commands_of_a_removed_image_are_removed(lab: Lab) -> None:
    lab.people(ml_images_present=[])
    run = lab.converge()
    assert {task.partition(":")[0] for task in run.changed()} == {"ml_aliases"}
    assert lab.on("ls /usr/local/bin") == "ml"
    assert lab.try_as("alice", "testlab").returncode == 127
    lab.people()
    lab.converge()
    assert lab.as_user("alice", "testlab -q echo back") == "back"


def test_an_absent_role_leaves_no_file(lab: Lab) -> None:
    lab.people(ml_aliases_state="absent")
    try:
        lab.converge()
        folders = "/usr/local /etc/slipway /etc/bash_completion.d /etc/fish"
        names = "-name '*slipway*' -o -name ml -o -name aliases.json -o -lname '*slipway*'"
        assert lab.on(f"find {folders} -mindepth 1 {names}") == ""
        assert lab.plan() == (0, set())
    finally:
        lab.people()
        lab.converge()


# A second host: no image of its own, and stand-ins for two GPUs.

NVIDIA_SMI = """#!/bin/sh
# Stand-in for NVIDIA's program on a host without a GPU.
[ "$1" != -L ] || printf 'GPU %s: Stand-in (UUID: GPU-%s)\\n' 0 a 1 b
"""
CDI = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": name, "containerEdits": {"env": [f"STAND_IN_GPU_{name}=yes"]}} for name in "01"
    ],
}


@pytest.fixture(scope="module")
def other(hosts: Group, catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A host that has aliases but not their image, and an engine with CDI."""
    other = Lab(
        hosts.ensure(HostSpec("lab-2", base=ENGINE_BASE)),
        tmp_path_factory.mktemp("lab-2"),
        catalogue,
    )
    other.people(
        ml_images_present=[],
        ml_aliases_images=["testlab"],
        docker_engine_extra_settings={"features": {"cdi": True}},
    )
    other.converge()
    return other


def test_an_image_is_copied_to_another_host(lab: Lab, other: Lab) -> None:
    missing = other.try_as("alice", "testlab true")
    assert f"image {IMAGE} is not on this host. Tell Dana (dana@lab" in missing.stderr
    assert "missing" in other.as_user("alice", "ml list")
    with subprocess.Popen(
        [*lab.ssh("alice"), "ml save testlab -"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as saved:
        loaded = subprocess.run(
            [*other.ssh("bob"), "ml load -"], stdin=saved.stdout, capture_output=True, text=True
        )
        assert saved.stderr is not None
        messages = saved.stderr.read().decode()
    assert loaded.returncode == 0, loaded.stderr
    assert messages.splitlines()[1:] == loaded.stdout.splitlines()[1:], (
        "image id and context digest"
    )
    assert re.search(r"^context digest  [0-9a-f]{64}$", messages, flags=re.M)
    assert digests(other)[IMAGE] == digests(lab)[IMAGE]
    assert other.as_user("alice", "testlab -q echo carried") == "carried"
    # Users can load any content under this name: the survey trusts only the record of the host.
    other.people(
        ml_aliases_images=["testlab"],
        docker_engine_extra_settings={"features": {"cdi": True}},
    )
    assert other.plan() == (2, {("ml_images", "images", IMAGE)})


def test_containers_get_unused_gpus(lab: Lab, other: Lab) -> None:
    other.on(
        f"echo {shlex.quote(NVIDIA_SMI)} >/usr/bin/nvidia-smi; chmod 0755 /usr/bin/nvidia-smi;"
        f"mkdir -p /etc/cdi; echo {shlex.quote(json.dumps(CDI))} >/etc/cdi/nvidia.json;"
        f"docker tag {IMAGE} slipway/testlab:gpu;"
        # Simulates the gpu variant, which a host without a GPU does not build.
        'sed -i \'s/testlab:cpu/testlab:gpu/; s/"variant": "cpu"/"variant": "gpu"/\''
        " /etc/slipway/aliases.json"
    )
    show = "sh -c 'echo $STAND_IN_GPU_0 $STAND_IN_GPU_1'"
    assert other.as_user("alice", f"testlab -q {show}") == "yes yes"
    assert other.as_user("alice", f"testlab -q --gpus none {show}") == ""
    assert other.try_as("alice", f"testlab -q --gpus 2 {show}").stderr == (
        "testlab: no GPU 2 on this host; expected one of: 0, 1\n"
    )
    other.as_user("alice", "testlab -q --gpus 0 --detach sleep 300")
    assert other.as_user("bob", "testlab -q sh -c 'echo 0:$STAND_IN_GPU_0 1:$STAND_IN_GPU_1'") == (
        "0: 1:yes"
    )
    other.as_user("bob", "testlab -q --detach sleep 300")
    alone = other.try_as("bob", f"testlab -q {show}")
    assert alone.stdout.strip() == ""
    assert "all GPUs are in use (0: alice-testlab, 1: bob-testlab)" in alone.stderr
    shared = other.try_as("bob", f"testlab -q --gpus 0 {show}")
    assert shared.stdout.strip() == "yes"
    assert "shares GPU 0 with alice-testlab" in shared.stderr
    listed = json.loads(other.as_user("bob", "ml list --json"))
    assert {gpu["id"]: gpu["used_by"] for gpu in listed["gpus"]} == {
        "0": "alice-testlab",
        "1": "bob-testlab",
    }
    other.as_user("alice", "ml stop")
    other.as_user("bob", "ml stop")
