# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One job on several hosts: each runs a container, and their processes find each other.

The variables are those of torch.distributed, and options of ``torchrun``: it reads each option from
a variable with the prefix ``PET_`` (torch/distributed/run.py).
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping

from . import queue, slurm
from .errors import MlError
from .settings import Alias

# Below the ports that the kernel gives to clients. Jobs of one host have different numbers.
FIRST_PORT, PORTS = 20_000, 10_000
# The ioctl that returns the IPv4 address of an interface: netdevice(7).
SIOCGIFADDR = 0x8915


def count_hosts(text: str) -> int:
    """Return the number of hosts that a person asks for.  Raise MlError for another text."""
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise MlError(f"hosts is {text!r}; expected a number of hosts such as 2. Change --hosts")
    return int(text)


def check_start(alias: Alias, request: slurm.Request) -> None:
    """Raise MlError for a start on several hosts whose containers could not work together."""
    if request.hosts == 1:
        return
    if not request.gpus:
        raise MlError(
            f"--hosts {request.hosts} is for jobs with GPUs: found gpus none; expected a number of "
            "GPUs on each host. Change --gpus or your settings, or leave out --hosts"
        )
    if alias.network == "none":
        raise MlError(
            f"{alias.name} has no network: containers on {request.hosts} hosts would not reach "
            "each other. Leave out --hosts"
        )


def is_part(environment: Mapping[str, str]) -> bool:
    """Return whether this process is the one of its host, in a job step on several hosts."""
    number = environment.get("SLURM_STEP_NUM_NODES", "1")
    is_alone = environment.get("SLURM_STEP_NUM_TASKS") == number
    return number not in ("", "1") and is_alone and "SLURM_PROCID" in environment


def check_step(environment: Mapping[str, str], hosts: int, name: str) -> None:
    """Raise MlError if the command line asks for several hosts, and the job step has one."""
    if hosts > 1 and not is_part(environment):
        raise MlError(
            f"--hosts {hosts} in job {environment['SLURM_JOB_ID']}: found one program on one host; "
            f"expected one on each of {hosts} hosts. In a script of sbatch, run: "
            f"srun --nodes={hosts} --ntasks-per-node=1 {name}"
        )


def on_network_of_host(alias: Alias) -> Alias:
    """Return the alias for a job on several hosts.

    Only on the network of its host does a container reach all ports of the other ones.
    """
    return alias._replace(network="host", ports={})


def find_address(environment: Mapping[str, str], contact: str) -> str:
    """Return the IPv4 address of the first host of the job step.  Raise MlError if it has none."""
    first = next(iter(queue.expand_names(environment.get("SLURM_STEP_NODELIST", ""))), "")
    status, output, errors = slurm.run(("scontrol", "--oneliner", "show", "node", first))
    if status:
        raise slurm.error(errors, contact)
    found = re.search(r"\bNodeAddr=(\S+)", output)
    name = found.group(1) if found else first
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise MlError(
            f"cannot find the address of {name}: {error.strerror}; expected an IPv4 address, "
            f"because the hosts of a job meet there. Tell {contact}"
        ) from error


def find_interface(address: str) -> str:
    """Return the network interface with the route to an address, empty for none.

    On the host with this address, it is the interface that has the address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        try:
            # This chooses a route and sends nothing.
            client.connect((address, FIRST_PORT))
        except OSError:
            return ""
        own = socket.inet_aton(client.getsockname()[0])
        return next(
            (name for _, name in socket.if_nameindex() if _address_of(client, name) == own), ""
        )


def _address_of(client: socket.socket, interface: str) -> bytes:
    """Return the first IPv4 address of an interface, empty for none."""
    import fcntl

    request = struct.pack("256s", interface.encode()[:15])
    try:
        return fcntl.ioctl(client, SIOCGIFADDR, request)[20:24]
    except OSError:
        return b""


def variables(
    environment: Mapping[str, str], gpus: int, address: str, interface: str
) -> dict[str, str]:
    """Return the variables of a container that is part of a job.

    gpus: the number of GPUs of the container.  address: of the first host.  interface: on which
    this host reaches it.
    """
    job = environment["SLURM_JOB_ID"]
    port = str(FIRST_PORT + (int(job) if job.isdecimal() else 0) % PORTS)
    names = {
        "GLOO_SOCKET_IFNAME": interface,
        # Without the sign, NCCL takes the interfaces whose names begin so.
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": port,
        "PET_NNODES": environment["SLURM_STEP_NUM_NODES"],
        "PET_NODE_RANK": environment["SLURM_PROCID"],
        "PET_NPROC_PER_NODE": str(gpus),
        **(names if interface else {}),
    }


def options(environment: Mapping[str, str], gpus: int, contact: str) -> list[str]:
    """Return the options of docker run for a container that is part of a job."""
    address = find_address(environment, contact)
    values = variables(environment, gpus, address, find_interface(address))
    return [f"--env={name}={value}" for name, value in values.items()]
