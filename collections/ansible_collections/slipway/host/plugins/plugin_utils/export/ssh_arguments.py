# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments that Ansible passes to ssh: jump hosts, and the names of other options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

# The flags of ssh that have a value, and those without one.
WITH_VALUE = frozenset("BbcDEeFIiJLlmOopQRSWw")
WITHOUT_VALUE = frozenset("46AaCfGgKkMNnqsTtVvXxYy")
# Options that do not change which host is reached, or how: of no interest to other tools.
NEUTRAL = {
    *("-C", "-q", "-v", "compression", "connecttimeout", "controlmaster", "controlpath"),
    *("controlpersist", "loglevel", "serveralivecountmax", "serveraliveinterval"),
}
# Options about the keys of the host and the user, which a configuration of ssh takes as they are.
KEPT = ("HostKeyAlias", "IdentitiesOnly", "StrictHostKeyChecking", "UserKnownHostsFile")
# Values without a backslash, a comment or a variable of the environment.
PLAIN = re.compile(r"[^\\#$]+")
OPTION = re.compile(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*)", re.S)
HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*"
USER = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*\$?"
JUMP = re.compile(rf"(?:ssh://)?(?:({USER})@)?({HOST})(?::(\d{{1,5}}))?")
# How the command of a ProxyCommand names the destination.
DESTINATIONS = ("%h:%p", "[%h]:%p")
EXPECTED = (
    "expected the jump host as -J USER@HOST:PORT, or as -o ProxyCommand with "
    "ssh -W %h:%p and only the options -i, -l, -p and -q"
)


class ArgumentsError(ValueError):
    """Arguments of ssh whose meaning is not clear; the text has no values of them."""


@dataclass(frozen=True)
class Jump:
    """A jump host; empty values are those of ssh. HOST has no brackets around an IPv6 address."""

    host: str
    user: str = ""
    port: int = 0
    key: str = ""

    @property
    def target(self) -> str:
        """Return the jump host as ProxyJump names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@" * bool(self.user) + host + f":{self.port}" * bool(self.port)

    @property
    def command(self) -> str:
        """Return the value of ProxyCommand."""
        words = ["ssh", "-W", "%h:%p"]
        words += ["-i", self.key] if self.key else []
        words += ["-p", str(self.port)] if self.port else []
        words += ["-l", self.user] if self.user else []
        words += [self.host]
        # The tokens %h and %p need no quotes.
        return " ".join(word if word == "%h:%p" else shlex.quote(word) for word in words)


@dataclass(frozen=True)
class Arguments:
    """The jump hosts in their order, and the other options that change how a host is reached.

    ``kept``: name and value of the options in KEPT. ``others``: the names of all further ones.
    """

    jumps: tuple[Jump, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()


def parse(text: str) -> Arguments:
    """Return what the arguments mean; raise ArgumentsError if they are not clear."""
    jumps: tuple[Jump, ...] | None = None
    kept: dict[str, str] = {}
    others: list[str] = []
    known = {name.lower(): name for name in KEPT}
    for name, value in _options(_split(text)):
        key = name.lower() if not name.startswith("-") else name
        if key in ("-J", "proxyjump"):
            found = _jumps(value)
        elif key == "proxycommand":
            found = () if value.lower() == "none" else (_jump_of_command(value),)
        elif key in ("-F", "include") and value not in ("none", "/dev/null"):
            raise ArgumentsError(f"the option {name} of ssh; {EXPECTED}")
        else:
            if key in known and PLAIN.fullmatch(value) and value.isprintable():
                kept.setdefault(known[key], value)
            elif key not in NEUTRAL:
                others.append(name)
            continue
        # ssh uses the first value.
        jumps = found if jumps is None else jumps
    return Arguments(jumps or (), tuple(kept.items()), tuple(dict.fromkeys(others)))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ArgumentsError(f"arguments with an error ({error}); {EXPECTED}") from None


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each option: ``-J`` or, for ``-o``, such as ``ProxyJump``."""
    rest = iter(words)
    for word in rest:
        if len(word) < 2 or word[0] != "-":
            raise ArgumentsError(f"an argument without a hyphen in front; {EXPECTED}")
        for position, flag in enumerate(word[1:], start=2):
            if flag in WITHOUT_VALUE:
                yield f"-{flag}", ""
                continue
            value = word[position:] or next(rest, "")
            if flag not in WITH_VALUE or not value:
                raise ArgumentsError(f"an option that ssh does not have; {EXPECTED}")
            option = OPTION.fullmatch(value) if flag == "o" else None
            if flag == "o" and option is None:
                raise ArgumentsError(f"-o without a name and a value; {EXPECTED}")
            yield (option[1], option[2]) if option else (f"-{flag}", value)
            break


def _jumps(value: str) -> tuple[Jump, ...]:
    return () if value.lower() == "none" else tuple(map(_jump, value.split(",")))


def _jump(text: str) -> Jump:
    match = JUMP.fullmatch(text.strip())
    if match is None or (match[3] and not 0 < int(match[3]) < 65536):
        raise ArgumentsError(f"a jump host of another form; {EXPECTED}")
    return Jump(match[2].strip("[]"), match[1] or "", int(match[3] or 0))


def _jump_of_command(value: str) -> Jump:
    """Return the jump host of a command such as ``ssh -W %h:%p -q admin@bastion``."""
    words = _split(value)
    if not words or words[0] not in ("ssh", "/usr/bin/ssh"):
        raise ArgumentsError(f"ProxyCommand with another command; {EXPECTED}")
    flags = {"-i": "", "-l": "", "-p": "", "-W": ""}
    hosts = []
    rest = iter(words[1:])
    for word in rest:
        if word in flags:
            flags[word] = next(rest, "")
        elif word.startswith("-") and word != "-q":
            raise ArgumentsError(f"ProxyCommand with other options; {EXPECTED}")
        elif word != "-q":
            hosts.append(word)
    if len(hosts) != 1 or flags["-W"] not in DESTINATIONS:
        raise ArgumentsError(f"ProxyCommand of another form; {EXPECTED}")
    port = f":{flags['-p']}" if flags["-p"] else ""
    user = f"{flags['-l']}@" if flags["-l"] and "@" not in hosts[0] else ""
    jump = _jump(f"{user}{hosts[0]}{port}")
    return Jump(jump.host, jump.user, jump.port, flags["-i"])
