# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A git work tree at a revision; work that somebody did in it is never lost.

In a tree git runs as who has it: a repository can make git run programs of its owner's choice, by
hooks, ``core.fsmonitor``, filters and more. So git runs as root only where root alone can write:
for a clone of the declared address, in a folder of root's own. New commits reach a tree as such a
clone, handed over to who has the tree; only root sees what the server is told.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import place
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    HEARTBEAT,
    WorkError,
    amount,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

Tree = Mapping[str, Any]

# Nobody is there to answer a question; no user's settings count.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    # Not ext:: and other helpers, which run programs.
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    # The survey reads references without git, as files.
    "GIT_DEFAULT_REF_FORMAT": "files",
    "LC_ALL": "C.UTF-8",
}
# Before git's command: what a repository or the host may say otherwise, and root must not do.
SAFE = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "submodule.recurse=false"),
    *("-c", "fetch.recurseSubmodules=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
)
# Where commits are handed to who has a tree: everybody can get there.
HANDOVER = "/var/tmp"
# Where root clones what goes into a folder that others can write.
PRIVATE = "/var/lib/slipway/data"
SHOWN = 3
# A repository may have git say anything, for ever.
SAID_BYTES, PATIENCE, KILLED = 1 << 24, 4 * 3600, "git was stopped"


class Git:
    """git in one opened work tree, run as who has it."""

    def __init__(self, tree: Folder) -> None:
        """Raise UnsafePathError where that would be root in a tree that others can write."""
        self.tree, self.path = tree, tree.path
        # Called every second while git works.
        self.tick: Callable[[], None] = lambda: None
        has = tree.info()
        self.user, self.group = has.st_uid, has.st_gid
        if self.user == 0:
            _refuse_open_tree(tree)

    def __call__(self, *words: str) -> str:
        """Return the lines that git says; raise WorkError where it fails."""
        as_whom: dict[str, Any] = {}
        if self.user != os.geteuid():
            name = _name(self.user)
            groups = os.getgrouplist(name, self.group) if name else []
            as_whom = {"user": self.user, "group": self.group, "extra_groups": groups}
        with _started(
            ["git", *SAFE, *words],
            cwd=f"/proc/self/fd/{self.tree.descriptor}",
            # Neither a proxy's password nor a token is theirs to see.
            env={"PATH": os.environ["PATH"], **QUIET},
            **as_whom,
        ) as process:
            said, complained = _said(process, self.tick)
        if process.returncode != 0:
            raise WorkError(_complaint(complained or said))
        return said.rstrip("\n")

    def knows(self, name: str) -> bool:
        """Whether NAME is a commit that is here."""
        try:
            self("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        except WorkError:
            return False
        return True


def _refuse_open_tree(tree: Folder) -> None:
    """Raise UnsafePathError where somebody else can write anything in a tree of root's."""
    if not place.is_closed_way(tree.path):
        raise UnsafePathError(
            tree.path,
            f"{paths.describe(tree.info())}, that others can write or rename",
            "an owner who is not root, as whom git can run: declare 'owner'",
        )
    for _inside, folders, files, folder in place.walk(tree):
        for name in (*folders, *files):
            info = folder.lstat(name)
            if info and (info.st_uid != 0 or info.st_mode & 0o022) and not _is_link(info):
                raise UnsafePathError(
                    f"{folder.path}/{name}",
                    f"{paths.describe(info)}, that others can write, in a repository of root's",
                    "an owner who is not root, as whom git can run: declare 'owner'",
                )


def _is_link(info: os.stat_result) -> bool:
    return paths.type_of(info) == paths.LINK


@contextmanager
def _started(command: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, which ends with the block."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **how,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _said(
    process: subprocess.Popen[bytes], tick: Callable[[], None], patience: float = PATIENCE
) -> tuple[str, str]:
    """Return what a program says, at most SAID_BYTES of it; call TICK every second meanwhile.

    Raise WorkError where it says more, or takes longer than PATIENCE seconds.
    """
    said: dict[str, bytes] = {}

    def read(name: str, stream: IO[bytes]) -> None:
        said[name] = stream.read(SAID_BYTES)

    streams = {"out": process.stdout, "err": process.stderr}
    # Not waited for in the end: what git left running may keep them open.
    readers = [
        threading.Thread(target=read, args=(name, stream), daemon=True)
        for name, stream in streams.items()
        if stream
    ]
    for reader in readers:
        reader.start()
    until = time.monotonic() + patience
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1 if readers[0].is_alive() or readers[1].is_alive() else 0.05)
        tick()
        if time.monotonic() > until:
            raise WorkError(f"{KILLED}: found no end after {patience / 3600:.0f} h")
        if any(len(text) == SAID_BYTES for text in said.values()):
            raise WorkError(f"{KILLED}: found more than {amount(SAID_BYTES)} of messages")
    for reader in readers:
        reader.join(timeout=2)
    out, err = (said.get(name, b"").decode("utf-8", "replace") for name in streams)
    return out, err


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


def _clone(secret: Mapping[str, Any], target: str, limit: Limit, *options: str) -> None:
    """Clone as root, who knows the secrets, into a folder of root's alone."""
    words = ["--quiet", "--template=", "--no-recurse-submodules", *options]
    local = _local_path(secret["url"])
    if local:
        words += ["--no-local", f"--upload-pack={_reader(local)}"]
    with _started(
        ["git", *SAFE, "clone", *words, "--", secret["url"], target],
        env={**os.environ, **QUIET, **secret_settings(secret["url"], secret["headers"])},
    ) as process:
        _out, said = _said(process, lambda: limit.check(os.path.dirname(target) or "."))
    if process.returncode != 0:
        raise WorkError(_complaint(said))


def _local_path(url: str) -> str:
    """Return the path of a repository on this host, empty for others."""
    return url.removeprefix("file://") if url.startswith(("/", "file:///")) else ""


def _reader(path: str) -> str:
    """Return the command by which git reads a repository of this host: as its owner.

    Its owner may have it lead to files elsewhere, which root could read.
    """
    with place.opened_tree(path) as folder:
        if folder is None:
            raise WorkError(f"cannot clone {path}: found nothing there; expected a repository.")
        info = folder.info()
        inner = f"{path}/.git" if folder.lstat(".git") else path
    user, group = info.st_uid, info.st_gid
    if os.geteuid() != 0 or (user == 0 and place.is_closed_way(inner)):
        return "git-upload-pack"
    if user == 0:
        nobody = pwd.getpwnam("nobody")
        user, group = nobody.pw_uid, nobody.pw_gid
    return (
        f"env -i PATH={shlex.quote(os.environ['PATH'])} GIT_CONFIG_GLOBAL=/dev/null "
        f"setpriv --reuid={user} --regid={group} --clear-groups -- "
        "git -c 'safe.directory=*' upload-pack"
    )


class Limit:
    """How much a clone may take; it is watched while git works."""

    def __init__(self, tree: Tree, progress: Progress) -> None:
        self.name, self.progress = tree["name"], progress
        # What is declared is the size of the work tree; the history comes on top of it.
        self.declared = tree["size"]
        self.told = time.monotonic()

    def check(self, folder: int | str) -> None:
        """Raise WorkError where the disk of a folder gets full; say that the work goes on."""
        if place.free_bytes(folder) == 0 or place.free_names(folder) == 0:
            declared = f", declared are {amount(self.declared)}" if self.declared else ""
            raise WorkError(
                f"cannot clone {self.name}: found no room on the disk any more{declared}; expected "
                "room for the repository. What was written is removed again. Make room, or list a "
                "folder on a larger disk in ml_data_disks."
            )
        if time.monotonic() - self.told >= HEARTBEAT:
            self.told = time.monotonic()
            self.progress.say(f"{self.name}: still cloning")


def make(tree: Tree, secret: Tree, look: place.Look, progress: Progress) -> None:
    """Make the work tree TREE in the stage that is the working folder, at its revision."""
    progress.say(f"{tree['name']}: cloning {tree['from']}")
    limit = Limit(tree, progress)
    if place.is_closed_way(os.getcwd()):
        note = _made(tree, secret, os.path.abspath(place.TREE), limit)
    else:
        # By its path, git would get where others lead it by a rename.
        os.makedirs(PRIVATE, 0o755, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="clone-", dir=PRIVATE) as folder:
            note = _made(tree, secret, f"{folder}/clone", limit)
            needed = _size_below(folder)
            if place.free_bytes(".") < needed:
                raise WorkError(
                    f"needs {amount(needed)}, free are {amount(place.free_bytes('.'))} in "
                    f"{os.getcwd()}; make room, or list a folder on a larger disk in ml_data_disks"
                )
            shutil.copytree(f"{folder}/clone", place.TREE, symlinks=True)
    with place.here(place.TREE) as made:
        place.follow(made, look, made=True)
        _write_note(made, note)


def _size_below(folder: str) -> int:
    """Return how many bytes a folder of root's alone holds."""
    return sum(
        os.lstat(os.path.join(inner, name)).st_size
        for inner, _folders, files in os.walk(folder)
        for name in files
    )


def _made(tree: Tree, secret: Tree, target: str, limit: Limit) -> dict[str, Any]:
    """Clone into TARGET, check the revision out, and return what to note of it."""
    _clone(secret, target, limit, "--no-checkout")
    with place.opened_tree(target) as folder:
        if folder is None:
            raise WorkError(f"cannot clone {tree['from']}: found no clone in {target}")
        git = Git(folder)
        git.tick = lambda: limit.check(folder.descriptor)
        return _settle(git, tree)


def move(tree: Tree, secret: Tree, folder: Folder, progress: Progress) -> None:
    """Bring an opened work tree to the declared revision; refuse where work would be lost."""
    git = Git(folder)
    _refuse_to_move(git)
    noted = trees.read_record(folder.descriptor, trees.GIT_RECORD) or {}
    if noted.get("version") != tree["version"] or not git.knows(noted.get("commit", "")):
        progress.say(f"{tree['name']}: cloning {tree['from']}")
        limit = Limit(tree, progress)
        git.tick = lambda: limit.check(folder.descriptor)
        with _handover(git, secret, limit) as clone:
            heads = "+refs/heads/*:refs/remotes/origin/*"
            git("fetch", "--quiet", "--force", clone, heads, "refs/tags/*:refs/tags/*")
    # Else nothing new is declared: it was moved, and goes back.
    _write_note(folder, _settle(git, tree))


@contextmanager
def _handover(git: Git, secret: Tree, limit: Limit) -> Iterator[str]:
    """Lend who has the tree a clone that root made.

    The folder stays root's, so its name leads nowhere else; the clone in it becomes the user's.
    """
    path = tempfile.mkdtemp(prefix="slipway-clone-", dir=HANDOVER)
    try:
        _clone(secret, f"{path}/clone", limit, "--bare")
        with place.opened_tree(path) as folder:
            if folder is None:
                raise FileNotFoundError(path)
            with folder.entered("clone") as clone:
                for _inside, folders, files, inner in place.walk(clone, bottom_up=True):
                    for name in (*folders, *files):
                        os.chown(
                            *(name, git.user, git.group),
                            dir_fd=inner.descriptor,
                            follow_symlinks=False,
                        )
                os.fchmod(clone.descriptor, 0o700)
                os.fchown(clone.descriptor, git.user, git.group)
            os.fchmod(folder.descriptor, 0o711)
        yield f"{path}/clone"
    finally:
        parent, name = os.path.split(path)
        with place.opened_tree(parent) as above:
            if above:
                place.discard(name, above)


def _settle(git: Git, tree: Tree) -> dict[str, Any]:
    """Check the declared revision out; return what to note of it."""
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
    return {"version": tree["version"], "commit": commit, "branch": branch, "names": []}


def _write_note(tree: Folder, note: Mapping[str, Any]) -> None:
    """Replace the note; whoever has the tree cannot lead it elsewhere by a link."""
    info = tree.info()
    name = trees.GIT_RECORD.rpartition("/")[2]
    with tree.entered(".git") as folder:
        content = json.dumps(note, indent=1).encode()
        folder.replace(name, content, 0o644, info.st_uid, info.st_gid)


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


def refuse_to_remove(tree: Folder) -> None:
    """Raise WorkError where an opened work tree holds anything that is nowhere else."""
    git, path = Git(tree), tree.path
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
