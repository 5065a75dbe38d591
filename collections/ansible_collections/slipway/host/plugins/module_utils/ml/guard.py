# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends a container whose client is gone.

The engine keeps a container running when its ``docker run`` dies, or when the person behind it
loses the connection.  So each attached start has a guard: a process that waits until the docker
command ends, or until nobody reads its output any more, and then stops the container if it is still
there.  With ``--detach``, and under ``nohup``, there is no guard.

A restart of the engine ends the docker command too, but with live-restore not the container.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import api, labels, reserve
from .api import Request

if TYPE_CHECKING:
    import socket

# The program in the container has this time to end after SIGTERM.
STOP_SECONDS = 10
# A container may appear late if its client dies while the engine creates it.
APPEAR_SECONDS = 5.0
# An engine that ends closes its connections within this time.
RESTART_SECONDS = 1.0
POLL_SECONDS = 0.2
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP)


def new_start_label() -> str:
    """Return a label by which the guard finds the container of one start."""
    return f"{labels.START}={os.urandom(8).hex()}"


def survives_hangup() -> bool:
    """Return whether the caller wants the command to outlive the connection, as with nohup."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def start_guard(label: str) -> None:
    """Start the guard of this process, which is or becomes the client of a container.

    LABEL is the container's, from :func:`new_start_label`.
    """
    filters = api.escape(json.dumps({"label": [label], "event": ["destroy"]}))
    events_request = Request(f"/events?filters={filters}")
    start_watcher(partial(_end_container, label), lambda: api.open_stream(events_request))


def start_watcher(end: Callable[[Any, int, bool], None], prepare: Callable[[], Any]) -> int | None:
    """Start a process that waits for the end of this process, or of its connection.

    The process calls PREPARE first, and at last END with the result, the pidfd of this process, and
    whether the connection was lost.  Return the number of the process, None without it.
    """
    try:
        client = os.pidfd_open(os.getpid())
    except (OSError, AttributeError):
        # A kernel without process descriptors, such as a sandbox: the start works without guard.
        return None
    if watcher := os.fork():
        os.close(client)
        return watcher
    try:
        os.setsid()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        reserve.release_copies()
        os.chdir("/")
        prepared = prepare()
        connection_lost = wait_for_end(client, output_streams((1, 2)))
        # So that the reader of a pipe is not kept waiting for this process.
        empty = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(empty, descriptor)
        end(prepared, client, connection_lost)
    finally:
        # Without the cleanup of the first process: its buffers and temporary folders.
        os._exit(0)


def _end_container(
    label: str, events: socket.socket | None, client: int, connection_lost: bool
) -> None:
    """Stop the container of a client that ended or lost its connection."""
    containers = find_containers(
        label, APPEAR_SECONDS if connection_lost else 0, lambda: has_ended(client)
    )
    if containers and (connection_lost or not has_engine_restarted(events)):
        end_containers(containers)


def output_streams(descriptors: Iterable[int]) -> frozenset[int]:
    """Return those descriptors that have a reader, who can go away: terminal, pipe or socket."""
    streams = set()
    for descriptor in descriptors:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            continue
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor):
            streams.add(descriptor)
    return frozenset(streams)


def wait_for_end(client: int, streams: frozenset[int]) -> bool:
    """Wait until the CLIENT (pidfd) has ended, or all STREAMS lost their reader.

    Return whether the streams lost their reader.
    """
    poller = select.poll()
    poller.register(client, select.POLLIN)
    waiting = set(streams)
    for descriptor in waiting:
        # Errors and hang-ups are always reported.
        poller.register(descriptor, 0)
    client_ended = False
    while waiting or not streams:
        events = dict(poller.poll(0 if client_ended else None))
        if client_ended and not events:
            return False
        # A hang-up of the terminal ends the client: then the streams are read once more.
        client_ended = client_ended or client in events
        for descriptor in events:
            waiting.discard(descriptor)
            poller.unregister(descriptor)
    return True


def has_ended(client: int) -> bool:
    """Return whether the process of a pidfd has ended."""
    return bool(select.select([client], [], [], 0)[0])


def has_engine_restarted(events: socket.socket | None) -> bool:
    """Return whether the engine closed the connection EVENTS, also within the next second.

    Without such a connection nothing is known, and a restart is assumed.
    """
    if events is None:
        return True
    deadline = time.monotonic() + RESTART_SECONDS
    while not api.is_closed(events):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def find_containers(
    label: str, appear_seconds: float, client_ended: Callable[[], bool]
) -> list[str]:
    """Return the IDs of the containers with a label; none if the engine does not answer.

    A container that does not exist yet is awaited as long as its client lives, and for
    APPEAR_SECONDS.
    """
    filters = api.escape(json.dumps({"label": [label]}))
    deadline = time.monotonic() + appear_seconds
    while True:
        try:
            (answer,) = api.fetch(Request(f"/containers/json?all=1&filters={filters}"))
            containers = [str(entry["Id"]) for entry in answer.json()]
        except (api.ApiError, KeyError, TypeError):
            return []
        if containers or (client_ended() and time.monotonic() >= deadline):
            return containers
        time.sleep(POLL_SECONDS)


def end_containers(containers: Sequence[str]) -> None:
    """Stop and remove containers.  Errors are ignored, because nobody reads them here."""
    for container in containers:
        try:
            api.fetch(Request(f"/containers/{container}/stop?t={STOP_SECONDS}", "POST"))
            api.fetch(Request(f"/containers/{container}?force=1&v=1", "DELETE"))
        except api.ApiError:
            continue
