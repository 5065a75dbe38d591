# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the callback slipway.host.live shows: the view on a terminal, or lines with the time.

A thread receives progress and draws. One lock protects state and streams: that of Ansible's
display, which Ansible also holds while it starts a worker.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    run_text,
    run_times,
    view_state,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.progress_channel import Channel
from ansible_collections.slipway.host.plugins.plugin_utils.live.run_output import (
    SCREEN,
    Log,
    Output,
)

AUTO, LIVE, PLAIN, ANSIBLE = "auto", "live", "plain", "ansible"
# Seconds between two pictures with news, and between two without: the times go on.
PAUSE, CLOCK = 0.2, 1.0
# Seconds without a line after which a plain run prints what it waits for.
SILENCE = 60.0
TIMES = "run-times.json"


def choose(asked: str, environment: Mapping[str, str], is_terminal: bool) -> str:
    """Return LIVE or PLAIN for AUTO, and every other choice unchanged."""
    if asked != AUTO:
        return asked
    is_simple = environment.get("TERM", "dumb") == "dumb" or environment.get("NO_COLOR")
    is_ci = environment.get("CI", "").lower() not in ("", "0", "false")
    return LIVE if is_terminal and not is_simple and not is_ci else PLAIN


class RunDisplay:
    """The display of one run. LOCK: see above; STATE: the folder for logs and times."""

    def __init__(self, mode: str, lock: Any, state: Path, name: str) -> None:
        self.lock = lock
        self.mode = mode
        self.times = state / TIMES
        self.run = view_state.Run(time.monotonic(), run_times.read(self.times))
        self.events = run_text.Events()
        self.problem = ""
        self.output = Output(lock, self._open_log(state / "logs", name))
        self.channel = Channel()
        self.is_over = False
        self._has_news = True
        self._drawn = self._spoke = time.monotonic()
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._follow, name="slipway view", daemon=True)

    def _open_log(self, folder: Path, name: str) -> Log | None:
        try:
            return Log(folder, name)
        except OSError as error:
            self.problem = f"No log of this run: {error}"
            return None

    def start(self) -> None:
        """Begin to show the run."""
        self.output.install()
        if self.mode == LIVE:
            self._start_view()
        if self.problem:
            self.say(self.problem)
        self._thread.start()

    def _start_view(self) -> None:
        try:
            from ansible_collections.slipway.host.plugins.plugin_utils.live import (  # noqa: PLC0415
                view_lines,
                view_terminal,
            )
        except ImportError:
            self.mode = PLAIN
            self.say("The Python library rich is missing: no view. Install it for the view.")
            return

        def render(width: int, height: int) -> list[view_lines.Line]:
            return view_lines.lines(self.run, width, height, time.monotonic())

        self.output.is_wrapped = True
        self.output.view = view_terminal.Region(self.output.terminal, render)

    def stop(self) -> None:
        """End the view, the thread and the channel; the log goes on until the process ends."""
        if self.is_over:
            return
        self.is_over = True
        os.close(self._wake)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._stop)
        self._receive()
        self.channel.close()
        self.output.remove_view()

    def pause(self) -> None:
        """Remove the view while Ansible asks a question."""
        with self.lock:
            self.output.is_paused = True
            if self.output.view:
                self.output.view.erase()

    def resume(self) -> None:
        """Draw the view again."""
        self.output.is_paused = False

    def say(self, *lines: str) -> None:
        """Print lines, with the time if there is no view; the log has them in other words."""
        if not lines:
            return
        first = f"{time.strftime('%H:%M:%S')} {lines[0]}" if self.mode == PLAIN else lines[0]
        self._spoke = time.monotonic()
        with self.output.only(SCREEN):
            sys.stdout.write("\n".join([first, *lines[1:]]) + "\n")
            sys.stdout.flush()

    def tell(self, lines: Iterable[str]) -> None:
        """Print events that the view shows by itself, each as a line with the time."""
        if self.mode == PLAIN:
            for line in lines:
                self.say(line)

    def news(self) -> None:
        """Draw the changed state soon."""
        self._has_news = True

    def save_times(self) -> None:
        """Record how long roles took."""
        try:
            run_times.write(self.times, self.run.ended_roles)
        except OSError as error:
            self.say(f"Cannot record the times of this run: {error}")

    def _follow(self) -> None:
        """Receive progress and draw, until the other end of the pipe is closed."""
        while True:
            ready, _, _ = select.select([self.channel.socket.fileno(), self._stop], [], [], PAUSE)
            if self._stop in ready:
                return
            with self.lock:
                self._receive()
                self._refresh(time.monotonic())
            if ready:
                # More progress may come at once.
                select.select([self._stop], [], [], PAUSE)

    def _refresh(self, now: float) -> None:
        if self.mode == PLAIN:
            self._report_wait(now)
        elif self._has_news or now - self._drawn >= CLOCK:
            self._has_news, self._drawn = False, now
            self.output.draw()

    def _receive(self) -> None:
        for message in self.channel.receive():
            text = run_text.one_line(message.text)
            host = self.run.host(message.host) if message.host in self.run.hosts else None
            if host is None or host.state != view_state.RUNNING:
                continue
            self._has_news = True
            if message.kind == "job":
                host.job = text
                continue
            host.text = text
            if message.kind == "line":
                self._log(f"{message.host}: {text}\n")
                self.tell(self.events.line(f"{message.host}: {text}"))

    def _log(self, text: str) -> None:
        if self.output.log:
            self.output.log.write(text)

    def _report_wait(self, now: float) -> None:
        """Print what the run waits for if it printed nothing for a while."""
        running = [host for host in self.run.hosts.values() if host.state == view_state.RUNNING]
        if now - self._spoke < SILENCE or not running:
            return
        first = min(running, key=lambda host: host.since)
        others = f" and {len(running) - 1} more" if len(running) > 1 else ""
        doing = ": ".join(filter(None, [first.role, first.step, first.text]))
        minutes = int((now - first.since) // 60)
        self.say(f"waiting for {first.name}{others}, for {minutes} min: {doing}")

    def interrupted(self) -> list[str]:
        """Return what goes on in the background after Ctrl-C, and how to return to it."""
        lines = []
        for host in sorted(self.run.hosts.values(), key=lambda host: host.name):
            if host.state != view_state.RUNNING:
                continue
            if host.job:
                text = f": {host.text}" if host.text else ""
                lines.append(f"{host.name} goes on in the background: {host.job}{text}")
            else:
                doing = ": ".join(filter(None, [host.role, host.step]))
                text = f"{host.name} was interrupted in: {doing}. A command of it may still end"
                lines.append(text)
        if not lines:
            return []
        again = "Run the same command again: it waits for what still runs, then does the rest."
        return ["Interrupted.", *lines, again]
