# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tamper matrix on one host: the survey names each tamper, and one run repairs many at once.

The owned state is declared here and set up by the modules of the collection. Each tamper is
applied, surveyed and taken back on the host itself, all in one connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds, parents
from ansible_collections.slipway.host.plugins.plugin_utils import ask_host
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history, overview, page

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host import tampers
from tests.host.conftest import Run, Site
from tests.host.tamper_scripts import BASE, DATA, HOME, KEYRING, SECOND_KEYRING, Tamper
from tests.host.tampers import HOST_TAMPERS

pytestmark = pytest.mark.host

GROUP = "pytest-tampers"
FINGERPRINT = hashlib.sha1(b"\x99\x00\x01\x04").hexdigest().upper()
KEYS = {
    "key.asc": KEYRING,
    "second.asc": SECOND_KEYRING,
    "both.asc": KEYRING + SECOND_KEYRING,
}
UNIT = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
SET_UP = f"""
groupadd --gid 4500 team
useradd --uid 4001 --create-home --shell /bin/sh --comment Alice alice
useradd --create-home bob
gpasswd --add alice team
apt-mark hold tar
cat >/etc/systemd/system/matrix.service
systemctl daemon-reload
mkdir -p {BASE}/only {BASE}/cdi {DATA}/pets/.slipway {DATA}/course/.git
chmod 0755 {HOME}
install -d -o 4001 -g 4500 {DATA}/volume
touch {BASE}/only/one
printf one >{BASE}/source
printf conf >{BASE}/conf
printf s3cret >/root/matrix-secret
printf s3cret >{BASE}/copy
printf 's3cret\\n' >{BASE}/secret
chmod 0600 {BASE}/copy {BASE}/secret
touch {DATA}/pets/cat
echo '{{"version": "one", "names": ["cat"]}}' >{DATA}/pets/.slipway/record.json
echo '{{"version": "one", "commit": "{"a" * 40}", "branch": "", "names": []}}' \
    >{DATA}/course/.git/slipway.json
echo {"a" * 40} >{DATA}/course/.git/HEAD
printf '[remote "origin"]\\n\\turl = https://example.org/one\\n' >{DATA}/course/.git/config
for tree in pets course; do
    chown alice:team {DATA}/$tree
    chmod 0750 {DATA}/$tree
done
"""
GENERATE = f"cd {BASE}/cdi && echo kind: x/gpu >n && mv n made"
# Runs on the host: applies each tamper, surveys, takes the tamper back; surveys again at times.
DRIVER = """
import json, subprocess, sys

work = json.load(sys.stdin)


def survey():
    command = ["/usr/bin/python3", "-I", "-S", "-"]
    done = subprocess.run(command, input=work["script"], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def shell(script):
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


results = []
for number, (apply, undo) in enumerate(work["tampers"], 1):
    failed = shell(apply)
    tampered = survey()
    failed += shell(undo)
    is_time = number % 10 == 0 or number == len(work["tampers"])
    results.append([failed, tampered, survey() if is_time else None])
json.dump(results, sys.stdout)
"""


SECRET, NOW = "s3cret", datetime(2026, 11, 28, tzinfo=timezone.utc)


def owned() -> dict[str, Any]:
    state = tampers.statement()
    state["keyrings"][0]["fingerprint"] = FINGERPRINT
    return state


def named(answer: Any) -> set[tuple[str, str]]:
    """Return kind and name of all differences; a conflict counts as a difference of its entry."""
    assert isinstance(answer, dict), answer
    found: set[tuple[str, str]] = set()
    for kind, entries in owned().items():
        for entry in entries:
            comparison = engine.compare({"": {kind: [entry]}}, answer, kinds.ALL)[""]
            found |= {(one.kind, one.name) for one in comparison.differences}
            if comparison.conflicts:
                found.add((kind, str(entry[kinds.ALL[kind].by])))
            # What is in the place of a parent folder is a conflict of all entries below it.
            paths = (one.reason.partition(": found ")[0] for one in comparison.conflicts)
            found |= {(parents.KIND, path) for path in paths}
    return found


def published(answer: Any) -> str:
    """Return the report and the page of a host that answered a survey so."""
    statements = {"matrix": owned()}
    compared = engine.compare(statements, answer, kinds.ALL)["matrix"]
    survey = {
        "overview": overview.describe(answer["facts"], statements, answer, [], {}),
        "differences": {"matrix": [vars(one) for one in compared.differences]},
        "conflicts": {"matrix": [vars(one) for one in compared.conflicts]},
        "health": [],
        "information": engine.information([*statements.values()], answer, kinds.ALL),
        "system": {},
    }
    run: dict[str, Any] = {
        "command": "plan",
        "state": "drift",
        "error": "",
        "hold": "",
        "survey": survey,
        "waiting": [],
    }
    run |= {"found": survey["differences"], "checks": None, "steps": []}
    report = history.update({}, "matrix", run, NOW)
    return json.dumps(report, ensure_ascii=False) + page.render([report], NOW)["index.html"]


class TamperSite(Site):
    """A host whose owned state is declared by this test and set up by modules."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.host, site.folder)
        self.playbook = self.folder / "tampers.yml"
        self.playbook.write_text(yaml.safe_dump([self.play()]))

    @staticmethod
    def play() -> dict[str, Any]:
        state = owned()
        json_entry = state["json"][0]
        files = [
            *state["files"],
            *(
                {"path": f"{BASE}/{name}", "content": content, "mode": "0600"}
                for name, content in (("secret", "s3cret\n"), ("copy", "s3cret"))
            ),
        ]
        tasks = [
            {"slipway.host.files": {"files": files, "folders": state["folders"]}},
            {
                "slipway.host.apt_keyring": {
                    **state["keyrings"][0],
                    "url": "file:///root/key.asc",
                }
            },
            {
                "slipway.host.daemon_json": {
                    **{key: json_entry[key] for key in ("path", "record", "settings", "absent")},
                    "defaults": json_entry["defaults"],
                    "unit": "",
                    "validate": "",
                }
            },
            {
                "slipway.host.derived_files": {
                    "derived": state["derived"],
                    "commands": [["sh", "-c", GENERATE]],
                }
            },
            {"slipway.host.authorized_keys": {"keys": state["lines"]}},
            {"slipway.host.links": {"links": state["links"]}},
            {"slipway.host.left_by_root": {"users": ["alice"]}},
            {"slipway.host.units": {"units": state["units"]}},
        ]
        named_tasks = [{"name": next(iter(task)), **task} for task in tasks]
        return {"hosts": "all", "gather_facts": False, "tasks": named_tasks}

    def as_root(self, script: str, stdin: str) -> str:
        command = self.host.ssh_command("sudo", "sh", "-ec", script)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def must(self) -> Run:
        run = self.run(str(self.playbook))
        assert run.status == "successful", run.output
        return run

    def survey(self) -> set[tuple[str, str]]:
        script = ask_host.script(engine.question([owned()], kinds.ALL))
        return named(json.loads(self.as_root("/usr/bin/python3 -I -S -", script)))

    def tamper(self, several: Sequence[Tamper]) -> list[list[Any]]:
        """Apply, survey and take back tampers.

        Return for each the output of failed scripts, the answer of the tampered host, and at times
        the answer after the tamper was taken back, else None.
        """
        work = {
            "script": ask_host.script(engine.question([owned()], kinds.ALL)),
            "tampers": [[tamper.apply, tamper.undo] for tamper in several],
        }
        self.as_root("cat >/root/driver.py", DRIVER)
        results: list[list[Any]] = json.loads(
            self.as_root("python3 /root/driver.py", json.dumps(work))
        )
        return results


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TamperSite]:
    group = Group(GROUP)
    group.remove()
    site = TamperSite(Site(group.ensure(HostSpec("tampers-1")), tmp_path_factory.mktemp("t")))
    site.declare()
    for name, keyring in KEYS.items():
        text = base64.b64encode(openpgp.to_text(keyring).encode()).decode()
        site.as_root(f"base64 -d >/root/{name}", text)
    site.as_root(SET_UP, UNIT)
    site.must()
    yield site
    group.remove()


def test_the_host_is_as_declared_and_stays_so(site: TamperSite) -> None:
    assert site.survey() == set()
    assert site.must().changed() == set()


@pytest.mark.parametrize("kind", dict.fromkeys(tamper.kind for tamper in HOST_TAMPERS))
def test_each_tamper_is_seen(site: TamperSite, kind: str) -> None:
    several = [tamper for tamper in HOST_TAMPERS if tamper.kind == kind]
    faults = []
    for tamper, result in zip(several, site.tamper(several), strict=True):
        failed, tampered, clean = result
        found = named(tampered)
        if failed:
            faults.append(f"{tamper}: {failed}")
        if SECRET in (text := published(tampered)) or str(tamper.name) not in text:
            faults.append(f"{tamper}: the report has the secret, or not the name")
        if (tamper.kind, tamper.name) not in found:
            faults.append(f"{tamper}: not seen; found {sorted(found)}")
        if left := named(clean) if clean else None:
            faults.append(f"{tamper}: not taken back: {sorted(left)}")
    assert not faults, "\n".join(faults)


# Repaired together by one run of the modules: no two of them on one path.
TOGETHER = f"""
chmod 0777 /etc/slipway {BASE} /var/lib/slipway {HOME} {HOME}/.ssh {DATA}/team
chown bob {BASE}/file {BASE}/daemon.json {BASE}/cdi {BASE}/key.asc
echo more >>{BASE}/secret
chgrp bob {BASE}/folder
touch {BASE}/gone {BASE}/only/more {HOME}/.ssh/known_hosts
cat /root/second.asc >>{BASE}/key.asc
chmod 0666 {BASE}/daemon.json /var/lib/slipway/matrix.json /var/lib/slipway/derived.json
: >{BASE}/cdi/made
cp {BASE}/source {BASE}/cdi/rival.yaml
echo 'kind: x/gpu' >{BASE}/cdi/rival.yaml
rm /usr/local/bin/matrix-a
systemctl disable --quiet --now matrix.service 2>/dev/null
install -d {HOME}/.docker
touch {HOME}/.docker/config.json
"""


def test_one_run_repairs_many_tampers_and_the_next_changes_nothing(site: TamperSite) -> None:
    site.on(TOGETHER)
    assert {kind for kind, _name in site.survey()} >= {
        *("derived", "files", "folders", "json", "keyrings", "left_by_root", "lines", "links"),
        *("parent_folders", "secrets", "units"),
    }
    assert len(site.must().changed()) == len(site.play()["tasks"])
    assert site.survey() == set()
    assert site.must().changed() == set()


MOVED = {"/etc/slipway": "/disk/etc", "/var/lib/slipway": "/disk/var"}


def test_folders_that_root_moved_are_followed_if_root_alone_can_redirect_them(
    site: TamperSite,
) -> None:
    """An administrator moves folders to another disk; later others can write there."""
    for folder, target in MOVED.items():
        site.on(f"mkdir -p /disk; mv {folder} {target}; ln -s {target} {folder}")
    assert site.survey() == set()
    assert site.must().changed() == set()
    site.on("chmod 0777 /disk")
    names, run = site.survey(), site.run(str(site.playbook))
    site.on("chmod 0755 /disk")
    for folder, target in MOVED.items():
        site.on(f"rm {folder}; mv {target} {folder}")
    # An entry below both links names the first one.
    assert (parents.KIND, "/etc/slipway") in names
    assert run.status == "failed"
    assert (
        "/etc/slipway: found a symbolic link to /disk/etc, owned by root; expected a folder, or a "
        "link to a folder that only root can replace." in run.output
    )
    assert site.survey() == set()
