# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run git without the rights of root, and without waiting for a person.

A repository can make git run programs, by hooks, ``core.fsmonitor``, filters and more. So in a work
tree, git runs as the owner of the tree. As root it runs only in folders that only root can write:
for a clone of the declared address.
"""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import disk, folders, progress
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import user_name
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    TreeError,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import paths
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

# git asks no question, and reads no settings of a user.
ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    # Without ext:: and other protocols that run programs.
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    # The survey reads references as files, without git.
    "GIT_DEFAULT_REF_FORMAT": "files",
    "LC_ALL": "C.UTF-8",
}
# Settings that override those of a repository and of the host, because they run programs.
OVERRIDES = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "submodule.recurse=false"),
    *("-c", "fetch.recurseSubmodules=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
)
# Limits, because a repository can make git print without end: bytes of output, and seconds.
MAX_OUTPUT, TIMEOUT, STOPPED = 1 << 24, 4 * 3600, "git was stopped"


class Git:
    """Runs git in an opened work tree, as the owner of the tree."""

    def __init__(self, tree: Folder) -> None:
        """Raise UnsafePathError if root owns a tree that others can write."""
        self.tree, self.path = tree, tree.path
        # Called every second while git runs.
        self.tick: Callable[[], None] = lambda: None
        info = tree.info()
        self.user, self.group = info.st_uid, info.st_gid
        if self.user == 0:
            _check_only_root_can_write(tree)

    def run(self, *arguments: str) -> str:
        """Return the output of a git command; raise TreeError if the command fails."""
        account: dict[str, Any] = {}
        if self.user != os.geteuid():
            name = user_name(self.user)
            groups = os.getgrouplist(name, self.group) if name else []
            account = {"user": self.user, "group": self.group, "extra_groups": groups}
        with _started(
            ["git", *OVERRIDES, *arguments],
            cwd=f"/proc/self/fd/{self.tree.descriptor}",
            # The user must not see the environment of root, which may contain proxy passwords.
            env={"PATH": os.environ["PATH"], **ENVIRONMENT},
            **account,
        ) as process:
            output, errors = _read_output(process, self.tick)
        if process.returncode != 0:
            raise TreeError(_describe_failure(errors or output))
        return output.rstrip("\n")

    def has_commit(self, name: str) -> bool:
        """Return whether NAME is a commit of the repository."""
        try:
            self.run("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        except TreeError:
            return False
        return True


def _check_only_root_can_write(tree: Folder) -> None:
    """Raise UnsafePathError if others can write anything in a tree of root, or rename its path."""
    if not folders.only_root_can_rename(tree.path):
        raise UnsafePathError(
            tree.path,
            f"{paths.describe(tree.info())}, that others can write or rename",
            "an owner who is not root, as whom git can run: declare 'owner'",
        )
    for _inside, names, file_names, folder in folders.walk(tree):
        for name in (*names, *file_names):
            info = folder.lstat(name)
            if info is None or paths.type_of(info) == paths.LINK:
                continue
            if info.st_uid != 0 or info.st_mode & 0o022:
                raise UnsafePathError(
                    f"{folder.path}/{name}",
                    f"{paths.describe(info)}, that others can write, in a repository of root's",
                    "an owner who is not root, as whom git can run: declare 'owner'",
                )


@contextmanager
def _started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, which is killed at the end of the block."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _read_output(
    process: subprocess.Popen[bytes], tick: Callable[[], None], timeout: float = TIMEOUT
) -> tuple[str, str]:
    """Return output and errors of a program; call TICK every second until it ends.

    Raise TreeError above MAX_OUTPUT bytes or after TIMEOUT seconds.
    """
    texts: dict[str, bytes] = {}

    def read(name: str, stream: IO[bytes]) -> None:
        texts[name] = stream.read(MAX_OUTPUT)

    streams = {"out": process.stdout, "err": process.stderr}
    # Daemon threads: processes that git left running may keep the streams open.
    readers = [
        threading.Thread(target=read, args=(name, stream), daemon=True)
        for name, stream in streams.items()
        if stream
    ]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + timeout
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1 if readers[0].is_alive() or readers[1].is_alive() else 0.05)
        tick()
        if time.monotonic() > deadline:
            raise TreeError(f"{STOPPED}: found no end after {timeout / 3600:.0f} h")
        if any(len(text) == MAX_OUTPUT for text in texts.values()):
            raise TreeError(f"{STOPPED}: found more than {format_size(MAX_OUTPUT)} of messages")
    for reader in readers:
        reader.join(timeout=2)
    output, errors = (texts.get(name, b"").decode("utf-8", "replace") for name in streams)
    return output, errors


def _describe_failure(output: str) -> str:
    return f"git failed: {'; '.join(output.strip().splitlines()[-5:])}"


def header_environment(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return an environment by which git sends HEADERS to the host of URL, and to no other."""
    parts = urlsplit(url)
    environment = {"GIT_CONFIG_COUNT": str(len(headers))}
    for number, (name, value) in enumerate(sorted(headers.items())):
        key = f"http.{parts.scheme}://{parts.netloc}/.extraHeader"
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = f"{name}: {value}"
    return environment


class CloneLimit:
    """Checks the free disk space while git clones, and reports that it still runs."""

    def __init__(self, tree: Mapping[str, Any], reports: Progress) -> None:
        self.name, self.reports = tree["name"], reports
        # The declared size is the size of the work tree, without the history.
        self.declared = tree["size"]
        self.reported = time.monotonic()

    def check(self, folder: int | str) -> None:
        """Raise TreeError if the disk of a folder is almost full."""
        if disk.free_bytes(folder) == 0 or disk.free_inodes(folder) == 0:
            declared = f" (declared size: {format_size(self.declared)})" if self.declared else ""
            raise TreeError(
                f"cannot clone {self.name}: the disk is full; expected space for the repository"
                f"{declared}. The unfinished clone was deleted. {disk.REMEDY}"
            )
        if time.monotonic() - self.reported >= progress.INTERVAL:
            self.reported = time.monotonic()
            self.reports.say(f"{self.name}: still cloning")


def clone(secret: Mapping[str, Any], target: str, limit: CloneLimit, *options: str) -> None:
    """Clone as root, with the secrets of the address, into a folder that only root can write."""
    arguments = ["--quiet", "--template=", "--no-recurse-submodules", *options]
    local = _local_path(secret["url"])
    if local:
        arguments += ["--no-local", f"--upload-pack={_upload_pack_command(local)}"]
    with _started(
        ["git", *OVERRIDES, "clone", *arguments, "--", secret["url"], target],
        env={**os.environ, **ENVIRONMENT, **header_environment(secret["url"], secret["headers"])},
    ) as process:
        _output, errors = _read_output(process, lambda: limit.check(os.path.dirname(target) or "."))
    if process.returncode != 0:
        raise TreeError(_describe_failure(errors))


def _local_path(url: str) -> str:
    """Return the path of a repository on this host, empty for others."""
    return url.removeprefix("file://") if url.startswith(("/", "file:///")) else ""


def _upload_pack_command(path: str) -> str:
    """Return the command that reads a repository of this host with the rights of its owner.

    The owner may have linked it to other files, which only root can read.
    """
    with folders.opened_tree(path) as folder:
        if folder is None:
            raise TreeError(
                f"cannot clone {path}: the folder does not exist; expected a repository. Correct "
                "the address."
            )
        info = folder.info()
        repository = f"{path}/.git" if folder.lstat(".git") else path
    user, group = info.st_uid, info.st_gid
    if os.geteuid() != 0 or (user == 0 and folders.only_root_can_rename(repository)):
        return "git-upload-pack"
    if user == 0:
        nobody = pwd.getpwnam("nobody")
        user, group = nobody.pw_uid, nobody.pw_gid
    return (
        f"env -i PATH={shlex.quote(os.environ['PATH'])} GIT_CONFIG_GLOBAL=/dev/null "
        f"setpriv --reuid={user} --regid={group} --clear-groups -- "
        "git -c 'safe.directory=*' upload-pack"
    )
