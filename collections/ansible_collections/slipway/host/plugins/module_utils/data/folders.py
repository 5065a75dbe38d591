# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opened folders: root works in folders of other users, who can rename anything at any time.

So each folder is opened once, by :mod:`state.paths`, and all work uses what was opened.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import Folder

# Folder in a data set with the records of the role ml_data.
RECORDS = trees.TREE_RECORD.split("/")[1]

# Device and inode: they identify a file or folder while it exists.
Identity = tuple[int, int]


def identify(info: os.stat_result) -> Identity:
    """Return the identity of a file or folder."""
    return info.st_dev, info.st_ino


@contextmanager
def opened_parent(path: str) -> Iterator[tuple[Folder | None, str]]:
    """Open the parent folder of PATH; yield it, or None if it is missing, and the name in it."""
    with ExitStack() as stack:
        parent: Folder | None
        try:
            parent, name = stack.enter_context(paths.opened_parent(path))
        except FileNotFoundError:
            parent, name = None, posixpath.basename(path)
        yield parent, name


@contextmanager
def opened_tree(path: str) -> Iterator[Folder | None]:
    """Open the folder at PATH and yield it, or None if it is missing.

    Raise UnsafePathError if PATH is not a folder, or if a link is on the way to it.
    """
    with ExitStack() as stack:
        parent, name = stack.enter_context(opened_parent(path))
        tree: Folder | None = None
        if parent:
            with suppress(FileNotFoundError):
                tree = stack.enter_context(parent.entered(name))
        yield tree


def is_folder(path: str) -> bool:
    """Return whether there is a folder at PATH; raise UnsafePathError as :func:`opened_tree`."""
    return identify_folder(path) is not None


def identify_folder(path: str) -> Identity | None:
    """Return the identity of the folder at PATH, None if it is missing."""
    with opened_tree(path) as folder:
        return identify(folder.info()) if folder else None


@dataclass(frozen=True)
class Link:
    """A symbolic link: its target, its description for messages, and its identity."""

    target: str
    description: str
    identity: Identity


def read_link(path: str) -> Link | None:
    """Return the link at PATH, None for anything else."""
    with opened_parent(path) as (parent, name):
        info = parent.lstat(name) if parent else None
        if not parent or info is None or paths.type_of(info) != paths.LINK:
            return None
        try:
            target = os.readlink(name, dir_fd=parent.descriptor)
        except OSError:
            raise parent.refuse(name, info, "a folder") from None
        return Link(target, paths.describe(info, target), identify(info))


def only_root_can_rename(path: str) -> bool:
    """Return whether only root can change which folder PATH, or a part of it, leads to.

    The sticky bit of a folder such as ``/tmp`` prevents that other users rename a folder of root in
    it. Programs that open files by path may work in such a path.
    """
    owners = {0, os.geteuid()}
    path = posixpath.normpath(path)
    names = path.strip("/").split("/")
    for length in range(len(names) + 1):
        ancestor = "/" + "/".join(names[:length])
        info = os.lstat(ancestor)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in owners:
            return False
        sticky = info.st_mode & stat.S_ISVTX and ancestor != path
        if info.st_mode & 0o022 and not sticky:
            return False
    return True


@contextmanager
def working_folder(descriptor: int) -> Iterator[None]:
    """Use an opened folder as the working folder in the block."""
    previous = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(descriptor)
        try:
            yield
        finally:
            os.fchdir(previous)
    finally:
        os.close(previous)


@contextmanager
def opened_working_folder(name: str = "") -> Iterator[Folder]:
    """Open the working folder, which must be a stage, or the folder NAME in it."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = Folder(descriptor, os.getcwd(), True)
        if not name:
            yield folder
            return
        with folder.entered(name) as inside:
            yield inside
    finally:
        os.close(descriptor)


# Path of a folder within a tree, names of its folders, names of its other entries, opened folder.
Step = tuple[str, list[str], list[str], Folder]


def walk(
    top: Folder, bottom_up: bool = False, only: Collection[str] | None = None
) -> Iterator[Step]:
    """Walk through an opened tree except its records; follow no links, open no other files.

    ONLY are the folders to walk through, such as ``train/``; None means all.
    """
    yield from _walk(top, "", bottom_up, only)


def _walk(
    folder: Folder, inside: str, bottom_up: bool, only: Collection[str] | None
) -> Iterator[Step]:
    folders: list[str] = []
    others: list[str] = []
    for entry in os.scandir(folder.descriptor):
        if entry.name == RECORDS and not inside:
            continue
        (folders if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    if not bottom_up:
        yield inside, folders, others, folder
    for name in folders:
        path = f"{inside}{name}/"
        if only is None or path in only:
            with folder.entered(name) as below:
                yield from _walk(below, path, bottom_up, only)
    if bottom_up:
        yield inside, folders, others, folder
