# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install, update and remove git work trees without losing work that people did in them.

New commits are cloned by root, and the clone is then given to the owner of the tree. So only root
sees the secrets of the address, and git runs in the tree only as its owner, see :mod:`data.git`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import disk, folders, staging
from ansible_collections.slipway.host.plugins.module_utils.data.git import CloneLimit, Git, clone
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import (
    Attributes,
    set_attributes,
    user_name,
)
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    TreeError,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import Folder

Tree = Mapping[str, Any]

# Folder for clones that are given to the owner of a tree: all users can enter it.
HANDOVER = "/var/tmp"
# Folder for clones of root whose target is in a folder that others can write.
PRIVATE = "/var/lib/slipway/data"
# Number of examples in a message.
SHOWN = 3


def create(tree: Tree, secret: Tree, attributes: Attributes, progress: Progress) -> None:
    """Create the work tree TREE at its revision; the working folder is its stage."""
    progress.say(f"{tree['name']}: cloning {tree['from']}")
    limit = CloneLimit(tree, progress)
    if folders.only_root_can_rename(os.getcwd()):
        record = _clone_revision(tree, secret, os.path.abspath(staging.TREE), limit)
    else:
        # git opens files by path, and others could rename a folder of the path of the stage.
        os.makedirs(PRIVATE, 0o755, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="clone-", dir=PRIVATE) as folder:
            record = _clone_revision(tree, secret, f"{folder}/clone", limit)
            needed, free = _size_below(folder), disk.free_bytes(".")
            if free < needed:
                raise disk.too_small(f"{format_size(free)} in {os.getcwd()}", needed)
            shutil.copytree(f"{folder}/clone", staging.TREE, symlinks=True)
    with folders.opened_working_folder(staging.TREE) as created:
        set_attributes(created, attributes, created_by_root=True)
        _write_record(created, record)


def _size_below(folder: str) -> int:
    """Return the size of the files in a folder that only root can write."""
    return sum(
        os.lstat(os.path.join(inner, name)).st_size
        for inner, _folders, files in os.walk(folder)
        for name in files
    )


def _clone_revision(tree: Tree, secret: Tree, target: str, limit: CloneLimit) -> dict[str, Any]:
    """Clone into TARGET and check out the revision; return the record for it."""
    clone(secret, target, limit, "--no-checkout")
    with folders.opened_tree(target) as folder:
        if folder is None:
            raise TreeError(f"cannot clone {tree['from']}: git left no clone in {target}")
        git = Git(folder)
        git.tick = lambda: limit.check(folder.descriptor)
        return _check_out(git, tree)


def update(tree: Tree, secret: Tree, folder: Folder, progress: Progress) -> None:
    """Check out the declared revision in an opened work tree; refuse if work would be lost."""
    git = Git(folder)
    _refuse_to_lose_changes(git)
    record = trees.read_record(folder.descriptor, trees.GIT_RECORD) or {}
    # With the same declaration and a known commit, nothing new is needed: somebody moved the tree.
    if record.get("version") != tree["version"] or not git.has_commit(record.get("commit", "")):
        progress.say(f"{tree['name']}: cloning {tree['from']}")
        limit = CloneLimit(tree, progress)
        git.tick = lambda: limit.check(folder.descriptor)
        with _clone_for_owner(git, secret, limit) as path:
            heads = "+refs/heads/*:refs/remotes/origin/*"
            git.run("fetch", "--quiet", "--force", path, heads, "refs/tags/*:refs/tags/*")
    _write_record(folder, _check_out(git, tree))


@contextmanager
def _clone_for_owner(git: Git, secret: Tree, limit: CloneLimit) -> Iterator[str]:
    """Yield the path of a clone by root that belongs to the owner of the work tree.

    The folder of the clone remains root's, so that its path cannot be changed by others.
    """
    path = tempfile.mkdtemp(prefix="slipway-clone-", dir=HANDOVER)
    try:
        clone(secret, f"{path}/clone", limit, "--bare")
        with folders.opened_tree(path) as folder:
            if folder is None:
                raise FileNotFoundError(path)
            with folder.entered("clone") as opened_clone:
                _give_to_owner(opened_clone, git)
            os.fchmod(folder.descriptor, 0o711)
        yield f"{path}/clone"
    finally:
        parent_path, name = os.path.split(path)
        with folders.opened_tree(parent_path) as parent:
            if parent:
                parent.remove(name)


def _give_to_owner(opened_clone: Folder, git: Git) -> None:
    """Make the owner of the work tree the owner of a clone."""
    for _inside, names, file_names, folder in folders.walk(opened_clone, bottom_up=True):
        for name in (*names, *file_names):
            os.chown(*(name, git.user, git.group), dir_fd=folder.descriptor, follow_symlinks=False)
    os.fchmod(opened_clone.descriptor, 0o700)
    os.fchown(opened_clone.descriptor, git.user, git.group)


def _check_out(git: Git, tree: Tree) -> dict[str, Any]:
    """Check out the declared revision; return the record for it."""
    revision, branch = tree["revision"], ""
    if "origin" in git.run("remote").split():
        git.run("remote", "set-url", "origin", tree["from"])
    else:
        git.run("remote", "add", "origin", tree["from"])
    if git.has_commit(f"refs/remotes/origin/{revision}"):
        branch, remote = revision, f"refs/remotes/origin/{revision}"
        if git.has_commit(f"refs/heads/{branch}"):
            git.run("checkout", "--quiet", branch, "--")
        else:
            git.run("checkout", "--quiet", "--track", "-b", branch, remote)
    elif git.has_commit(f"refs/tags/{revision}"):
        git.run("checkout", "--quiet", "--detach", f"refs/tags/{revision}")
    elif git.has_commit(revision):
        git.run("checkout", "--quiet", "--detach", revision)
    else:
        raise TreeError(
            f"{tree['from']} has no commit, tag or branch {revision}. Correct 'revision'."
        )
    commit = git.run("rev-parse", "HEAD")
    return {"version": tree["version"], "commit": commit, "branch": branch, "names": []}


def _write_record(tree: Folder, record: Mapping[str, Any]) -> None:
    """Replace the record in a work tree, without following a link of the owner of the tree."""
    info = tree.info()
    name = trees.GIT_RECORD.rpartition("/")[2]
    with tree.entered(".git") as folder:
        content = json.dumps(record, indent=1).encode()
        folder.replace(name, content, 0o644, info.st_uid, info.st_gid)


def _refuse_to_lose_changes(git: Git) -> None:
    """Raise TreeError if a checkout would lose changes or commits of people."""
    changed = git.run("status", "--porcelain", "--untracked-files=no").splitlines()
    user = user_name(git.user) or git.user
    if changed:
        raise TreeError(
            f"{git.path} has changes that are not committed ({_list_files(changed)}). As {user}, "
            "commit or stash the changes there, then run again."
        )
    if git.run("rev-list", "--max-count=1", "HEAD", "--not", "--branches", "--tags", "--remotes"):
        raise TreeError(
            f"{git.path} has commits that are on no branch. As {user}, run 'git branch NAME' there "
            "to keep the commits, then run again."
        )


def refuse_to_remove(tree: Folder) -> None:
    """Raise TreeError if an opened work tree has files or commits that exist nowhere else."""
    git, path = Git(tree), tree.path
    left = git.run("status", "--porcelain", "--ignored").splitlines()
    if left:
        raise TreeError(
            f"cannot remove {path}: it holds files that are not in its repository "
            f"({_list_files(left)}). Move or delete the files, then run again."
        )
    if git.run("stash", "list"):
        raise TreeError(
            f"cannot remove {path}: it holds stashed work. Apply or drop the stash, then run again."
        )
    if git.run("rev-list", "--max-count=1", "HEAD", "--branches", "--not", "--remotes", "--tags"):
        raise TreeError(
            f"cannot remove {path}: it has commits that were never pushed. Push the commits, then "
            "run again."
        )


def _list_files(lines: list[str]) -> str:
    """Return the file names in lines of `git status`, without the state of three characters."""
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return ", ".join(line[3:] for line in lines[:SHOWN]) + more
