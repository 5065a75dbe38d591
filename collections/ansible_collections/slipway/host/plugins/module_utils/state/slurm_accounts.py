# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of a Slurm cluster: members, shares and limits, as slurmdbd has them.

Keys of an entry of slurm_accounts: cluster, accounts: each with name, members, and share?, gpus?,
gpus_per_member?, jobs_per_member?. The first account of a member is the default of the member's
jobs.

What the module slurm_accounts made is in RECORD: only this is removed when it is not declared any
more. Accounts and members that somebody else added stay, and are information. Other limits than
these stay, too.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, TypeAlias

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]
    # Account and user; the user is empty for the account itself.
    Key: TypeAlias = tuple[str, str]

LIST = ("sacctmgr", "--noheader", "--parsable2", "list")
FIELDS = (
    "Cluster",
    "Account",
    "User",
    "Partition",
    "ParentName",
    "Fairshare",
    "GrpTRES",
    "MaxJobs",
)


def ask_accounts(cluster: str) -> Json | None:
    """Return the associations of a cluster and the users, None without an answer of slurmdbd.

    ``rows`` are account, user, parent account, share, limits of resources, and limit of jobs.
    ``defaults`` maps each user to the default account.
    """
    try:
        rows = _list("associations", *FIELDS)
        users = _list("users", "User", "DefaultAccount")
    except OSError:
        return None
    return {
        "rows": [
            [account, user, *values]
            for owner, account, user, partition, *values in rows
            if owner == cluster and not partition
        ],
        "defaults": dict(users),
    }


def _list(what: str, *fields: str) -> list[Any]:
    status, text = reading.run_for_status([*LIST, what, f"format={','.join(fields)}"])
    lines = [line.split("|") for line in text.splitlines()]
    if status or any(len(line) != len(fields) for line in lines):
        raise OSError(f"sacctmgr: no list of {what}")
    return lines


ASKS = {"slurm_accounts": reading.each(ask_accounts)}


# --- Nothing below is sent to hosts with the survey. ---
import json
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.state import slurm
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind

RECORD = f"{slurm.STATE_FOLDER}/accounts.json"
# Slurm's own account and user.
ROOT = "root"
GPUS = "gres/gpu"
# What sacctmgr takes for no limit.
NO_LIMIT = "-1"
_WORDS = {"fairshare": "share", GPUS: "limit of GPUs", "maxjobs": "limit of jobs"}


@dataclass(frozen=True)
class Step:
    """One difference, and the arguments of sacctmgr that repair it; none for the record alone."""

    found: str
    expected: str
    arguments: tuple[str, ...] = ()


def declared_rows(accounts: Iterable[Mapping[str, Any]]) -> dict[Key, dict[str, str]]:
    """Return the settings of each account and each member; an empty value is no limit."""
    rows: dict[Key, dict[str, str]] = {}
    for account in accounts:
        jobs = str(account.get("jobs_per_member", ""))
        rows[account["name"], ""] = {
            "fairshare": str(account.get("share", 1)),
            GPUS: str(account.get("gpus", "")),
            # The members inherit it.
            "maxjobs": jobs,
        }
        for member in account["members"]:
            rows[account["name"], member] = {
                "fairshare": "1",
                GPUS: str(account.get("gpus_per_member", "")),
                "maxjobs": jobs,
            }
    return rows


def found_rows(answer: Mapping[str, Any]) -> dict[Key, dict[str, str]]:
    """Return the settings of each account and user of the host."""
    rows = {}
    for account, user, _parent, share, resources, jobs in answer["rows"]:
        limits = dict(word.partition("=")[::2] for word in resources.split(","))
        rows[account, user] = {
            "fairshare": share,
            GPUS: limits.get(GPUS, ""),
            "maxjobs": jobs,
        }
    return rows


def read_record(text: str | None) -> dict[str, list[str]]:
    """Return the accounts with their members that the role made; a broken record has none."""
    try:
        record = json.loads(text or "")
        return {str(name): [str(member) for member in record[name]] for name in record}
    except (ValueError, TypeError, LookupError):
        return {}


def record_of(entry: Entry) -> dict[str, list[str]]:
    """Return what to record of a declaration."""
    return {account["name"]: list(account["members"]) for account in entry["accounts"]}


def list_steps(entry: Entry, answer: Answer) -> Iterator[Step]:
    """Yield the steps from the accounts of the host to the declared ones, in their order."""
    found = answer["slurm_accounts"][entry["cluster"]]
    if found is None:
        yield Step("no answer of slurmdbd", "accounts")
        return
    declared, present = declared_rows(entry["accounts"]), found_rows(found)
    record = read_record(answer["texts"].get(RECORD))
    cluster = f"cluster={entry['cluster']}"
    for key, settings in declared.items():
        yield from _settle_row(key, settings, present.get(key), cluster)
    yield from _settle_defaults(declared, found["defaults"], record, cluster)
    yield from _remove_rows(declared, present, found, record, cluster)
    if record != record_of(entry):
        yield Step("its record differs", "the declared accounts")


def _settle_row(
    key: Key, settings: Mapping[str, str], found: Mapping[str, str] | None, cluster: str
) -> Iterator[Step]:
    """Yield the step that makes an account or a member as declared."""
    account, user = key
    noun = f"member {user} of {account}" if user else f"account {account}"
    words = [
        f"grptres={GPUS}={value or NO_LIMIT}" if name == GPUS else f"{name}={value or NO_LIMIT}"
        for name, value in settings.items()
    ]
    if found is None:
        new = ("user", user, f"account={account}") if user else ("account", account)
        yield Step(f"{noun}: {MISSING}", "there", ("add", *new, cluster, *words))
    elif differing := [name for name in settings if found[name] != settings[name]]:
        where = (f"name={user}", f"account={account}") if user else (f"name={account}",)
        thing = "user" if user else "account"
        values = ", ".join(f"{_WORDS[name]} {found[name] or 'none'}" for name in differing)
        yield Step(
            f"{noun}: {values}",
            ", ".join(settings[name] or "none" for name in differing),
            ("modify", thing, "where", *where, cluster, "set", *words),
        )


def _settle_defaults(
    declared: Iterable[Key], defaults: Mapping[str, str], record: Iterable[str], cluster: str
) -> Iterator[Step]:
    """Yield the steps that give members their default accounts.

    The account that somebody else chose stays, if the role does not know it.
    """
    own = {*record, *(account for account, _user in declared)}
    expected: dict[str, str] = {}
    for account, user in declared:
        if user:
            expected.setdefault(user, account)
    for user, account in expected.items():
        found = defaults.get(user, account)
        if found != account and (found in own or not found):
            words = ("where", f"name={user}", cluster, "set", f"defaultaccount={account}")
            yield Step(
                f"default account of {user}: {found or 'none'}", account, ("modify", "user", *words)
            )


def _remove_rows(
    declared: Iterable[Key],
    present: Iterable[Key],
    answer: Mapping[str, Any],
    record: Mapping[str, Iterable[str]],
    cluster: str,
) -> Iterator[Step]:
    """Yield the steps that remove what the role made and what is not declared any more."""
    left = set(present)
    parents = {parent for _account, user, parent, *_more in answer["rows"] if not user}
    for account, members in record.items():
        for user in members:
            if (account, user) in left and (account, user) not in declared:
                left.discard((account, user))
                where = f"name={user}", f"account={account}", cluster
                words = ("delete", "user", "where", *where)
                yield Step(f"{user} is a member of {account}", "none", words)
        # With an account, Slurm removes everything below it.
        is_used = account in parents or any(one == account and user for one, user in left)
        if (account, "") in left and (account, "") not in declared and not is_used:
            arguments = ("delete", "account", "where", f"name={account}", cluster)
            yield Step(f"account {account}", "none", arguments)


def compare_accounts(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of the accounts of a cluster."""
    for step in list_steps(entry, answer):
        yield step.found, step.expected


def inform_accounts(entry: Entry, answer: Answer) -> Iterator[str]:
    """Yield the accounts and members that somebody else added; Slipway leaves them in place."""
    found = answer["slurm_accounts"][entry["cluster"]]
    record, declared = read_record(answer["texts"].get(RECORD)), declared_rows(entry["accounts"])
    for account, user, *_values in found["rows"] if found else ():
        is_recorded = account in record and (not user or user in record[account])
        if account != ROOT and (account, user) not in declared and not is_recorded:
            what = f"user {user} in account {account}" if user else f"account {account}"
            yield f"Slurm has {what}, which slurm_accounts does not declare"


def _ask_record(_entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "texts", [RECORD]


KINDS = (
    Kind(
        *("slurm_accounts", "cluster", "slurm_accounts", compare_accounts),
        further=_ask_record,
        inform=inform_accounts,
    ),
)
