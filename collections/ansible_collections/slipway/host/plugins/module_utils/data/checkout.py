# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A git work tree at a revision; work that somebody did in it is never lost.

In a tree git runs as who has it: a repository can make git run programs of its owner's choice.
Only root sees what the server is told, so new commits come by way of a clone of root's own.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    HEARTBEAT,
    WorkError,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

Tree = Mapping[str, Any]

# Nobody is there to answer a question; no user's settings count.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    # The survey reads references without git, as files.
    "GIT_DEFAULT_REF_FORMAT": "files",
    "LC_ALL": "C.UTF-8",
}
# Where commits are handed to who has a tree: everybody can get there.
HANDOVER = "/var/tmp"
SHOWN = 3


class Git:
    """git in one work tree, run as who has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        has = os.stat(path)
        self.user, self.group = has.st_uid, has.st_gid

    def __call__(self, *words: str) -> str:
        """Return the lines that git says; raise WorkError where it fails."""
        return _run(["git", "-C", self.path, *words], self.user, self.group)

    def knows(self, name: str) -> bool:
        """Whether NAME is a commit that is here."""
        try:
            self("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        except WorkError:
            return False
        return True


def _run(command: list[str], user: int, group: int) -> str:
    """Run git in a tree, as who has it; neither a proxy's password nor a token is theirs to see."""
    as_whom: dict[str, Any] = {}
    if user != os.geteuid():
        groups = os.getgrouplist(_name(user), group) if _name(user) else []
        as_whom = {"user": user, "group": group, "extra_groups": groups}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **QUIET},
        check=False,
        **as_whom,
    )
    if done.returncode != 0:
        raise WorkError(_complaint(done.stderr or done.stdout))
    return str(done.stdout).rstrip("\n")


def _complaint(said: str) -> str:
    return f"git says: {'; '.join(said.strip().splitlines()[-5:])}"


def secret_settings(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return an environment by which git sends HEADERS to the host of URL, and to no other."""
    parts = urlsplit(url)
    found = {"GIT_CONFIG_COUNT": str(len(headers))}
    for number, (name, value) in enumerate(sorted(headers.items())):
        found[f"GIT_CONFIG_KEY_{number}"] = f"http.{parts.scheme}://{parts.netloc}/.extraHeader"
        found[f"GIT_CONFIG_VALUE_{number}"] = f"{name}: {value}"
    return found


def _clone(secret: Mapping[str, Any], target: str, say: Callable[[], None], *options: str) -> None:
    """Clone as root, who knows the secrets; SAY from time to time that it still runs."""
    with subprocess.Popen(
        ["git", "clone", "--quiet", *options, "--", secret["url"], target],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **QUIET, **secret_settings(secret["url"], secret["headers"])},
    ) as process:
        while True:
            try:
                _out, said = process.communicate(timeout=HEARTBEAT)
                break
            except subprocess.TimeoutExpired:
                say()
    if process.returncode != 0:
        raise WorkError(_complaint(said))


def make(tree: Tree, secret: Tree, target: str, progress: Progress) -> None:
    """Make the work tree TARGET, with the declared revision."""
    _clone(secret, target, _telling(tree, progress), "--no-checkout")
    _settle(Git(target), tree)


def _telling(tree: Tree, progress: Progress) -> Callable[[], None]:
    progress.say(f"{tree['name']}: cloning {tree['from']}")
    return lambda: progress.say(f"{tree['name']}: still cloning")


def move(tree: Tree, secret: Tree, path: str, progress: Progress) -> None:
    """Bring the work tree PATH to the declared revision; refuse where work would be lost."""
    git = Git(path)
    _refuse_to_move(git)
    noted = (_probe.tree(path) or {}).get("record") or {}
    if noted.get("version") == tree["version"] and git.knows(noted.get("commit", "")):
        # Nothing new is declared: it was moved, and goes back.
        _settle(git, tree)
        return
    with _handover(git, secret, _telling(tree, progress)) as clone:
        heads = "+refs/heads/*:refs/remotes/origin/*"
        git("fetch", "--quiet", "--force", clone, heads, "refs/tags/*:refs/tags/*")
    _settle(git, tree)


@contextmanager
def _handover(git: Git, secret: Tree, say: Callable[[], None]) -> Iterator[str]:
    """Lend who has the tree a clone that root made."""
    # Root's alone until all is in it, then the owner's alone.
    folder = tempfile.mkdtemp(prefix="slipway-clone-", dir=HANDOVER)
    try:
        _clone(secret, f"{folder}/clone", say, "--bare")
        for place, names, files in os.walk(folder):
            for name in (*names, *files):
                os.lchown(os.path.join(place, name), git.user, git.group)
        os.chown(folder, git.user, git.group)
        yield f"{folder}/clone"
    finally:
        shutil.rmtree(folder)


def _settle(git: Git, tree: Tree) -> None:
    """Check the declared revision out, and note what it was."""
    revision, branch = tree["revision"], ""
    if "origin" in git("remote").split():
        git("remote", "set-url", "origin", tree["from"])
    else:
        git("remote", "add", "origin", tree["from"])
    if git.knows(f"refs/remotes/origin/{revision}"):
        branch = revision
        if git.knows(f"refs/heads/{branch}"):
            git("checkout", "--quiet", branch, "--")
        else:
            git("checkout", "--quiet", "--track", "-b", branch, f"refs/remotes/origin/{branch}")
    elif git.knows(f"refs/tags/{revision}"):
        git("checkout", "--quiet", "--detach", f"refs/tags/{revision}")
    elif git.knows(revision):
        git("checkout", "--quiet", "--detach", revision)
    else:
        raise WorkError(f"{tree['from']} has no commit, tag or branch {revision}")
    commit = git("rev-parse", "HEAD")
    note = {"version": tree["version"], "commit": commit, "branch": branch, "names": []}
    _write_note(git.path, note)


def _write_note(path: str, note: Mapping[str, Any]) -> None:
    """Replace the note; whoever has the tree cannot lead it elsewhere by a link."""
    folder = os.open(f"{path}/.git", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    name = _probe.GIT_RECORD.rpartition("/")[2]
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        descriptor = os.open(f"{name}.new", flags, 0o644, dir_fd=folder)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(note, file, indent=1)
        os.rename(f"{name}.new", name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _refuse_to_move(git: Git) -> None:
    changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        raise WorkError(
            f"{git.path} has changes that are not committed ({_some(changed)}); commit or stash "
            f"them there, as {_name(git.user) or git.user}, and run again"
        )
    if git("rev-list", "--max-count=1", "HEAD", "--not", "--branches", "--tags", "--remotes"):
        raise WorkError(
            f"{git.path} has commits that are on no branch; keep them with 'git branch NAME' "
            f"there, as {_name(git.user) or git.user}, and run again"
        )


def refuse_to_remove(path: str) -> None:
    """Raise WorkError where a work tree holds anything that is nowhere else."""
    git = Git(path)
    left = git("status", "--porcelain", "--ignored").splitlines()
    if left:
        raise WorkError(
            f"{path} holds files that are not in its repository ({_some(left)}); move or delete "
            "them, and run again"
        )
    if git("stash", "list"):
        raise WorkError(f"{path} holds stashed work; apply or drop it, and run again")
    if git("rev-list", "--max-count=1", "HEAD", "--branches", "--not", "--remotes", "--tags"):
        raise WorkError(f"{path} has commits that were never pushed; push them, and run again")


def _some(lines: list[str]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    # The first three characters tell what is with the file.
    return ", ".join(line[3:] for line in lines[:SHOWN]) + more


def _name(user: int) -> str:
    """Return a user's name, empty where nobody has the number."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return ""
