# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try the ways that the engine's proxy on this host hides.

From a container to other hosts and to names, from a network beside this host to a published port,
and from an ordinary user to the commands.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import json
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.host import engine_users
from ansible_collections.slipway.host.plugins.module_utils.state import packet_filter, reading

SECONDS = 10
START_SECONDS = 120
Target = tuple[str, str, int]

# In a container: an address by name, then a connection to an address that the host reaches.
_PROBE = """\
getent ahostsv4 "$0" >/dev/null && echo name
timeout {seconds} bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null && echo connection
"""


def _run(*command: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
    )


# --- from a container to other hosts -------------------------------------------------------------


def check_outward(uris: Iterable[str], images: Sequence[str]) -> str:
    """Check that containers resolve names and reach other hosts, where this host does.

    URIS are those of the host's apt sources; IMAGES are references of images of the catalogue.
    Raise ValueError if a container does not reach what the host reaches.
    """
    if not images:
        return "not tried: no image of the catalogue is on this host"
    names = packet_filter.bridge_subnets()
    if not names:
        return "not tried: the engine has no bridge network with access to other hosts"
    target = next(find_targets(uris), None)
    if target is None:
        return "not tried: this host itself reaches no server of its apt sources directly"
    # The default network copies the name servers of the host; on others the engine answers.
    chosen = sorted(names, key=lambda name: name != "bridge")[:2]
    for name in chosen:
        _check_from(name, images[0], target)
    return f"containers of {' and '.join(chosen)} resolve and reach {target[0]}:{target[2]}"


def find_targets(uris: Iterable[str]) -> Iterator[Target]:
    """Yield name, IPv4 address and port of servers in URIS that this host reaches."""
    for uri in dict.fromkeys(uris):
        parts = urlsplit(uri)
        ports = {"http": 80, "https": 443}
        if parts.scheme not in ports or not parts.hostname:
            continue
        try:
            port = parts.port or ports[parts.scheme]
            found = socket.getaddrinfo(parts.hostname, port, socket.AF_INET, socket.SOCK_STREAM)
            address = str(found[0][4][0])
            socket.create_connection((address, port), SECONDS / 2).close()
        except (OSError, ValueError):
            continue
        if not ipaddress.ip_address(address).is_loopback:
            yield parts.hostname, address, port


def _check_from(network: str, image: str, target: Target) -> None:
    name, address, port = target
    command = ["docker", "run", "--rm", "--pull=never", f"--network={network}", "--entrypoint=sh"]
    probe = ["-c", _PROBE.format(seconds=SECONDS), name, address, str(port)]
    done = _run(*command, image, *probe, seconds=START_SECONDS)
    passed = done.stdout.split()
    if not passed and done.returncode in (125, 126, 127):
        raise ValueError(
            f"no container started in network {network}: found {done.stderr.strip()[-300:]!r}; "
            f"expected a container of {image}"
        )
    if "connection" not in passed:
        raise ValueError(
            f"containers of network {network} do not reach other hosts: found no connection to "
            f"{address}:{port} ({name}); expected one, as from this host. Check sysctl "
            "net.ipv4.ip_forward (expected 1) and the rules of the firewall: iptables -S FORWARD"
        )
    if "name" not in passed:
        raise ValueError(
            f"containers of network {network} do not resolve names: found no address for {name}; "
            f"expected one, as on this host ({address}). Check /etc/resolv.conf, or set dns in "
            "docker_engine_settings to a name server that containers reach"
        )


# --- from a network beside this host to published ports ------------------------------------------

# Where the network beside this host may be: no firewall takes these for the internet.
_SUBNETS = ("10.255.255.252/30", "192.168.255.252/30", "172.31.255.252/30")
_TOOLS = ("unshare", "nsenter", "ip")
_CONNECT = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),{}).close()"


def check_published(found: Iterable[Mapping[str, Any]]) -> str:
    """Check that published ports answer connections from outside this host.

    A connection from this host itself takes another way through the packet filter. FOUND are the
    containers as the engine lists them. Raise ValueError if a port does not answer.
    """
    ports = list(list_published(found))
    if not ports:
        return "not tried: no container publishes a port beyond this host"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not tried: {', '.join(missing)} not found on this host"
    try:
        with _network_beside() as (process, gateway):
            closed = [port for port in ports if not _answers(process, port, gateway)]
    except RuntimeError as error:
        return f"not tried: this host cannot make a network namespace: {error}"
    if not closed:
        return f"{len(ports)} published ports answer from outside"
    described = ", ".join(f"{name} ({address}:{port})" for name, address, port in closed)
    if _has_own_rules():
        return (
            f"no answer from outside by {described}; the chain DOCKER-USER has rules of somebody "
            "else, which may be the reason"
        )
    raise ValueError(
        f"published ports do not answer from outside: found no connection to {described} from a "
        "network beside this host; expected one, as on this host. Check the rules of the firewall: "
        "iptables -S FORWARD. To publish a port only on this host, bind it to 127.0.0.1"
    )


def list_published(found: Iterable[Mapping[str, Any]]) -> Iterator[Target]:
    """Yield container, address and number of each TCP port that is published beyond this host."""
    seen = set()
    for container in found:
        name = (container.get("Names") or ["/?"])[0].lstrip("/")
        for port in container.get("Ports") or ():
            address = ipaddress.ip_address(port.get("IP") or "127.0.0.1")
            if port.get("Type", "tcp") != "tcp" or not port.get("PublicPort"):
                continue
            if address.version == 4 and not address.is_loopback:
                seen.add((name, str(address), int(port["PublicPort"])))
    yield from sorted(seen)


def free_subnet(routes: Iterable[Mapping[str, Any]]) -> str | None:
    """Return a subnet for the network beside this host that no route of ``ip -json`` covers."""
    used = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in routes
        if route.get("dst", "default") != "default"
    ]
    for subnet in _SUBNETS:
        if not any(ipaddress.ip_network(subnet).overlaps(other) for other in used):
            return subnet
    return None


@contextlib.contextmanager
def _network_beside() -> Iterator[tuple[int, str]]:
    """Make a network namespace with a link to this host; yield a process in it and its gateway.

    Raise RuntimeError if this host cannot make it. Nothing of it stays.
    """
    routes = json.loads(_run("ip", "-json", "-4", "route").stdout or "[]")
    subnet = free_subnet(routes)
    if subnet is None:
        raise RuntimeError(f"all of {', '.join(_SUBNETS)} are in use")
    gateway, inner = (f"{host}/30" for host in ipaddress.ip_network(subnet).hosts())
    process = subprocess.Popen(
        ["unshare", "--net", "sleep", "60"], stderr=subprocess.PIPE, text=True
    )
    link, peer = f"sw{process.pid}", f"sx{process.pid}"
    inside = ("nsenter", f"--net=/proc/{process.pid}/ns/net", "ip")
    try:
        _wait_for_namespace(process)
        for command in (
            ("ip", "link", "add", link, "type", "veth", "peer", "name", peer),
            ("ip", "link", "set", peer, "netns", str(process.pid)),
            ("ip", "address", "add", gateway, "dev", link),
            ("ip", "link", "set", link, "up"),
            (*inside, "address", "add", inner, "dev", peer),
            (*inside, "link", "set", peer, "up"),
            (*inside, "route", "add", "default", "via", gateway.partition("/")[0]),
        ):
            done = _run(*command)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip())
        yield process.pid, gateway.partition("/")[0]
    finally:
        _run("ip", "link", "delete", link)
        process.kill()
        process.wait()


def _wait_for_namespace(process: subprocess.Popen[str]) -> None:
    own = reading.read_link_name("/proc/self/ns/net")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(
                process.stderr.read().strip() if process.stderr else "unshare failed"
            )
        if reading.read_link_name(f"/proc/{process.pid}/ns/net") not in ("", own):
            return
        time.sleep(0.01)
    raise RuntimeError("unshare did not start")


def _answers(process: int, port: Target, gateway: str) -> bool:
    _name, address, number = port
    target = gateway if address == "0.0.0.0" else address
    enter = ("nsenter", f"--net=/proc/{process}/ns/net")
    connect = ("/usr/bin/python3", "-c", _CONNECT.format(SECONDS / 2), target, str(number))
    return _run(*enter, *connect).returncode == 0


def _has_own_rules() -> bool:
    if shutil.which("iptables") is None:
        return False
    rules = _run("iptables", "-S", "DOCKER-USER").stdout.splitlines()
    return any(rule.startswith("-A") and not rule.endswith("-j RETURN") for rule in rules)


# --- from an ordinary user to the commands -------------------------------------------------------

COMMAND = Path("/usr/local/bin/ml")
# As login(1) sets it for users; see ENV_PATH in login.defs(5).
_USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
_NO_SHELLS = ("nologin", "false", "sync")


def check_command(docker_users: Collection[str]) -> str:
    """Check that an ordinary user can run ``ml``, with the rights of that user.

    A user with access to Docker (DOCKER_USERS) lists images too. Raise ValueError if ``ml`` fails.
    """
    if not COMMAND.exists():
        return "not tried: the command ml is not installed"
    # Directory services do not list their accounts, but answer for each name.
    declared = [pwd.getpwnam(name) for name in docker_users if engine_users.exists(name)]
    account = find_user([*declared, *pwd.getpwall()], docker_users)
    if account is None:
        return "not tried: this host has no ordinary user"
    arguments = ["list"] if account.pw_name in docker_users else ["--help"]
    command = f"ml {arguments[0]}"
    try:
        done = subprocess.run(
            [str(COMMAND), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
            check=False,
            cwd="/",
            env={"PATH": _USER_PATH, "HOME": account.pw_dir, "USER": account.pw_name},
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=_groups_of(account),
            umask=0o022,
        )
        said = (done.stderr or done.stdout).strip()[-300:]
        found = f"exit code {done.returncode} ({said})" if done.returncode else ""
    except OSError as error:
        found = str(error)
    if found:
        raise ValueError(
            f"user {account.pw_name} cannot run {command}: found {found}; expected exit code 0. "
            "Check the modes of /usr/local/bin, /usr/local/lib/slipway and /etc/slipway, or run "
            "./slipway site"
        )
    return f"user {account.pw_name} runs {command}"


def find_user(
    accounts: Iterable[pwd.struct_passwd], docker_users: Collection[str]
) -> pwd.struct_passwd | None:
    """Return an ordinary user who can log in, one of DOCKER_USERS if there is one."""
    ordinary = [
        account
        for account in accounts
        if 1000 <= account.pw_uid < 65534 and not account.pw_shell.endswith(_NO_SHELLS)
    ]
    return min(ordinary, key=lambda account: account.pw_name not in docker_users, default=None)


def _groups_of(account: pwd.struct_passwd) -> list[int]:
    member_of = [group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem]
    return sorted({account.pw_gid, *member_of})
