# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jump hosts are read from the arguments of ssh, or refused without showing the arguments."""

from __future__ import annotations

import subprocess

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.export.ssh_arguments import (
    Arguments,
    ArgumentsError,
    Jump,
    parse,
)

BASTION = Jump("bastion")
ADMIN = Jump("bastion.example.org", "admin", 2222)


@pytest.mark.parametrize(
    ("text", "jumps"),
    [
        ("", ()),
        ("-C -o ControlMaster=auto -o ControlPersist=60s", ()),
        ("-J bastion", (BASTION,)),
        ("-Jbastion", (BASTION,)),
        ("-CqJ bastion", (BASTION,)),
        ("-J admin@bastion.example.org:2222", (ADMIN,)),
        ("-J ssh://admin@bastion.example.org:2222", (ADMIN,)),
        ("-J 'admin@[2001:db8::1]:22'", (Jump("2001:db8::1", "admin", 22),)),
        ("-J bastion,admin@bastion.example.org:2222", (BASTION, ADMIN)),
        ("-o ProxyJump=bastion", (BASTION,)),
        ("-oproxyjump=bastion", (BASTION,)),
        ("-o 'ProxyJump bastion'", (BASTION,)),
        ("-o 'ProxyJump = bastion'", (BASTION,)),
        ("-o ProxyJump=none", ()),
        ('-o ProxyCommand="ssh -W %h:%p bastion"', (BASTION,)),
        ("-o 'ProxyCommand=ssh -q -W [%h]:%p bastion'", (BASTION,)),
        (
            "-o ProxyCommand='ssh -p 2222 -l admin -i /k -W %h:%p bastion.example.org'",
            (Jump(ADMIN.host, ADMIN.user, ADMIN.port, "/k"),),
        ),
        ("-o ProxyCommand='/usr/bin/ssh admin@bastion -W %h:%p'", (Jump("bastion", "admin"),)),
        ("-o ProxyCommand=none", ()),
        # The first value counts, as for ssh.
        ("-J none -J bastion", ()),
        ("-J bastion -o ProxyCommand='ssh -W %h:%p other'", (BASTION,)),
        ("-F /dev/null -J bastion", (BASTION,)),
    ],
)
def test_jump_hosts_are_read(text: str, jumps: tuple[Jump, ...]) -> None:
    assert parse(text).jumps == jumps


@pytest.mark.parametrize(
    "text",
    [
        "-o ProxyCommand='sshpass -p SECRET ssh -W %h:%p bastion'",
        "-o ProxyCommand='ssh -W %h:%p -o SECRET=1 bastion'",
        "-o ProxyCommand='ssh -W %h:%p bastion SECRET'",
        "-o ProxyCommand='ssh -W SECRET:22 bastion'",
        "-o ProxyCommand='ssh bastion nc %h %p SECRET'",
        "-o ProxyCommand='ssh -W %h:%p SECRET;id'",
        "-o ProxyCommand='nc -X connect -x SECRET:3128 %h %p'",
        "-o 'ProxyCommand=\"SECRET'",
        "-o ProxyCommand=",
        "-F SECRET",
        "-o Include=SECRET",
        "-J 'SECRET host'",
        "-J '$(SECRET)'",
        "-J -oSECRET",
        "-J bastion,",
        "-J bastion:0",
        "-J bastion:SECRET",
        "-J bastion:65536",
        "-J",
        "-o SECRET",
        "-Z SECRET",
        "SECRET",
        "-- SECRET",
        "'SECRET",
    ],
)
def test_unclear_arguments_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse(text)
    assert "expected the jump host as -J USER@HOST:PORT" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_other_options_are_named_without_their_values() -> None:
    text = "-C -o ControlPath=/x -o Ciphers=aes256-ctr -p 22 -o SetEnv=TOKEN=SECRET -A -A"
    assert parse(text) == Arguments((), (), ("Ciphers", "-p", "SetEnv", "-A"))


@pytest.mark.parametrize(
    ("text", "kept", "others"),
    [
        (
            "-o stricthostkeychecking=no -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
            (("StrictHostKeyChecking", "no"), ("IdentitiesOnly", "yes")),
            (),
        ),
        (
            """-o 'UserKnownHostsFile="/a b" ~/.ssh/c'""",
            (("UserKnownHostsFile", '"/a b" ~/.ssh/c'),),
            (),
        ),
        ("-o 'HostKeyAlias=a\nProxyCommand id'", (), ("HostKeyAlias",)),
        ("-o 'HostKeyAlias=a # b'", (), ("HostKeyAlias",)),
        ("-o 'UserKnownHostsFile=${SECRET}'", (), ("UserKnownHostsFile",)),
    ],
)
def test_options_about_keys_are_kept(
    text: str, kept: tuple[tuple[str, str], ...], others: tuple[str, ...]
) -> None:
    assert parse(text) == Arguments((), kept, others)


@pytest.mark.parametrize(
    ("jump", "target", "command"),
    [
        (BASTION, "bastion", "ssh -W %h:%p bastion"),
        (
            ADMIN,
            "admin@bastion.example.org:2222",
            "ssh -W %h:%p -p 2222 -l admin bastion.example.org",
        ),
        (Jump("2001:db8::1", key="/a b"), "[2001:db8::1]", "ssh -W %h:%p -i '/a b' 2001:db8::1"),
    ],
)
def test_a_jump_host_is_written_as_ssh_reads_it(jump: Jump, target: str, command: str) -> None:
    assert (jump.target, jump.command) == (target, command)
    for option, value in (("ProxyJump", target), ("ProxyCommand", command)):
        done = subprocess.run(
            ["ssh", "-F", "none", "-G", "-o", f"{option}={value}", "host"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"\n{option.lower()} {value}\n" in done.stdout
