# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the options of the role slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.slurm.config import jobs_folder
from ansible_collections.slipway.host.plugins.module_utils.state.slurm import LOCAL_STATE

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
RESERVED = "default"
_CLUSTER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
# A word of slurm.conf, and of a shell command of systemd.
_FOLDER = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
# Without a separator, YAML has read 12:00:00 as a number, and Slurm would read minutes.
_TIME = re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}|UNLIMITED")
# sacctmgr reads other characters as separators, and changes upper-case letters of accounts.
_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,59}\$?")
# Slurm has 32 bits for shares and limits, and the highest numbers have meanings of their own.
_MAX_NUMBER = 1_000_000
_LIMITS = ("gpus", "gpus_per_member", "jobs_per_member")
# Slurm's own account.
_ROOT = "root"


class SlurmError(ValueError):
    """The declaration of a cluster cannot be applied."""


def check_options(options: Mapping[str, Any], hosts: Sequence[str]) -> None:
    """Raise SlurmError for options that cannot be applied."""
    check_names(options)
    if not hosts:
        raise SlurmError(
            "slurm_nodes: found no hosts; expected the hosts that run jobs. Add hosts to the group "
            "slurm, or set slurm_nodes"
        )
    partitions = options["slurm_partitions"]
    names = [partition["name"] for partition in partitions]
    if len(set(names)) < len(names) or not names:
        raise SlurmError(
            f"slurm_partitions: found {', '.join(names) or 'none'}; expected at least one "
            "partition, each name once. Change the list"
        )
    defaults = [partition["name"] for partition in partitions if partition.get("default")]
    if len(defaults) > 1:
        raise SlurmError(
            f"slurm_partitions: found default: true for {', '.join(defaults)}; expected one "
            "default partition. Change the list"
        )
    for partition in partitions:
        _check_partition(partition, hosts)
    _check_accounting(options)


def check_names(options: Mapping[str, Any]) -> None:
    """Raise SlurmError for names of the cluster, its controllers and their folder."""
    cluster, folder = options["slurm_cluster_name"], options["slurm_state_folder"]
    if not _CLUSTER.fullmatch(cluster):
        raise SlurmError(
            f"slurm_cluster_name: found {cluster!r}; expected 1 to 40 lower-case letters, digits, "
            "'_' and '-'. Change the name"
        )
    if folder and not _FOLDER.fullmatch(folder):
        raise SlurmError(
            f"slurm_state_folder: found {folder!r}; expected an absolute path of letters, digits, "
            "'.', '_' and '-'. Change the path"
        )
    backup = options["slurm_backup_controller"]
    if backup and backup == options["slurm_controller"]:
        raise SlurmError(
            f"slurm_backup_controller: found {backup}, the controller itself; expected another "
            "host. Change one of both"
        )
    if backup and not folder:
        raise SlurmError(
            "slurm_backup_controller: found a backup without slurm_state_folder; expected both, "
            "because the backup goes on with the jobs of the controller. Set slurm_state_folder to "
            "a folder of a shared file system"
        )


def check_folder(
    options: Mapping[str, Any], controllers: Mapping[str, Mapping[str, Any]], remedy: str
) -> None:
    """Raise SlurmError if not all CONTROLLERS, facts by host, have the same shared folder.

    The facts of a host out of reach have no folder. Jobs move to a shared folder, but not from it.
    """
    folder, first = options["slurm_state_folder"], next(iter(controllers.values()))
    current = first["jobs_folder"]
    if current not in ("", LOCAL_STATE, jobs_folder(options)):
        raise SlurmError(
            f"slurm_state_folder: found {folder or 'none'}; expected the parent folder of "
            f"{current!r}, where the cluster has its jobs. {remedy}"
        )
    if not folder:
        return
    seen = {host: node["folder"] for host, node in controllers.items() if "folder" in node}
    for host, identity in seen.items():
        if identity is None:
            raise SlurmError(
                f"slurm_state_folder: found no folder {folder} on a shared file system on host "
                f"{host}; expected one that is mounted on all controllers. Make and mount it there"
            )
        if identity == []:
            raise SlurmError(
                f"slurm_state_folder: found {folder} on host {host}, where others than root can "
                "change names; expected a folder of root. Change owner and mode of the folder and "
                "of those above it"
            )
    first_seen = next(iter(seen.values()), None)
    if any(identity != first_seen for identity in seen.values()):
        raise SlurmError(
            f"slurm_state_folder: found different folders {folder} on hosts {', '.join(seen)}; "
            "expected the same folder of one shared file system. Mount it on all controllers. If "
            "somebody has just changed the folder, run again"
        )


def _check_partition(partition: Mapping[str, Any], hosts: Sequence[str]) -> None:
    name = partition["name"]
    where = f"slurm_partitions: partition {name!r}"
    if not NAME.fullmatch(name) or name.lower() == RESERVED:
        raise SlurmError(
            f"{where}: invalid name; expected letters, digits, '.', '_' and '-', other than "
            "DEFAULT. Change the name"
        )
    for key in ("default_time", "max_time"):
        if not _TIME.fullmatch(partition[key]):
            raise SlurmError(
                f"{where}: {key} is {partition[key]!r}; expected a time such as '1-12:00:00' or "
                "'12:00:00' in quotes, or UNLIMITED. Change the time"
            )
    for key in ("nodes", "groups"):
        if partition.get(key) == []:
            raise SlurmError(
                f"{where}: {key} is an empty list, which Slurm takes for all; expected names. Add "
                f"names, or remove {key}"
            )
    for host in partition.get("nodes") or ():
        if host not in hosts:
            raise SlurmError(
                f"{where}: node {host} is not in slurm_nodes; expected hosts of the cluster. "
                "Correct the list"
            )
    for group in partition.get("groups") or ():
        if re.search(r"[\s,=#]", group) or not group:
            raise SlurmError(
                f"{where}: group {group!r} has a character that slurm.conf cannot have; expected "
                "the name of a group. Change the group"
            )


def _check_accounting(options: Mapping[str, Any]) -> None:
    """Raise SlurmError for accounts and a fair share that cannot be applied."""
    accounts, half_life = options["slurm_accounts"], options["slurm_fair_share"].get("half_life")
    if half_life and (half_life == "UNLIMITED" or not _TIME.fullmatch(half_life)):
        raise SlurmError(
            f"slurm_fair_share: half_life is {half_life!r}; expected a time such as '7-00:00:00' "
            "in quotes. Change the time"
        )
    for key in ("weight", "age_weight"):
        _check_number("slurm_fair_share", key, options["slurm_fair_share"], least=0)
    if accounts and not options["slurm_accounting"]:
        raise SlurmError(
            "slurm_accounts: found accounts without slurm_accounting; expected both, because "
            "accounts are in the database. Set slurm_accounting: true"
        )
    names = [account["name"] for account in accounts]
    if len(set(names)) < len(names):
        raise SlurmError(
            f"slurm_accounts: found {', '.join(names)}; expected each name once. Change the list"
        )
    for account in accounts:
        _check_account(account)


def _check_account(account: Mapping[str, Any]) -> None:
    name, where = account["name"], f"slurm_accounts: account {account['name']!r}"
    if not _ACCOUNT.fullmatch(name) or name == _ROOT:
        raise SlurmError(
            f"{where}: invalid name; expected lower-case letters, digits, '.', '_' and '-', other "
            "than root. Change the name"
        )
    for member in account["members"]:
        if not _USER.fullmatch(member):
            raise SlurmError(
                f"{where}: member {member!r} is not a valid user name; expected letters, digits, "
                "'.', '_', '@' and '-'. Correct the list"
            )
    _check_number(where, "share", account, least=1)
    for key in _LIMITS:
        _check_number(where, key, account, least=0)


def _check_number(where: str, key: str, values: Mapping[str, Any], least: int) -> None:
    if key in values and not least <= values[key] <= _MAX_NUMBER:
        raise SlurmError(
            f"{where}: {key} is {values[key]}; expected a number from {least} to {_MAX_NUMBER}. "
            "Change the number"
        )
