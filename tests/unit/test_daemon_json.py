# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The merge into daemon.json: its rules as tables, its promises as properties, the real module."""

from __future__ import annotations

import grp
import json
import os
import pwd
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.docker import (
    daemon_json_previous,
    restart_consent,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json import (
    DaemonJsonError,
    Merge,
    merge,
    owned_difference,
    plan_merge,
    read_record,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_record import (
    OwnedKey,
    join_key,
    split_key,
    update_record,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_text import (
    BYTE_ORDER_MARK,
    decode,
    mask_credentials,
    parse,
    render,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.dockerd_flags import (
    find_conflicts,
    list_environment_files,
    read_unit_flags,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import Json
from ansible_collections.slipway.host.plugins.modules import daemon_json

PATH = "/etc/docker/daemon.json"


# --- Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        pytest.param('{"debug": true}', {"debug": True}, id="object"),
        pytest.param("", {}, id="empty"),
        pytest.param(" \n\t\n", {}, id="blank"),
        pytest.param(BYTE_ORDER_MARK + '{"mtu": 1}', {"mtu": 1}, id="byte order mark"),
        pytest.param(
            '{"a": {"k": 1}, "b": {"k": 2}}', {"a": {"k": 1}, "b": {"k": 2}}, id="k in a, b"
        ),
        pytest.param(r'{"labels": ["\ud800"]}', {"labels": ["\ud800"]}, id="half a surrogate pair"),
    ],
)
def test_valid_json_is_parsed(text: str, data: Json) -> None:
    assert parse(text) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            '{\n    "debug": true\n    "mtu": 1\n}',
            "line 3, column 5: Expecting ',' delimiter.\n        \"mtu\": 1\n        ^\nCorrect",
            id="missing comma",
        ),
        pytest.param(
            '{\n\t"mtu": 1x\n}',
            "line 2, column 10: Expecting ',' delimiter.\n     \"mtu\": 1x\n             ^",
            id="tab",
        ),
        pytest.param(
            '{"mtu": 1}\r\n{}', "line 2, column 1: Extra data.\n    {}\n    ^", id="two objects"
        ),
        pytest.param("{'mtu': 1}", "line 1, column 2: Expecting property name", id="single quotes"),
        pytest.param('// mine\n{"mtu": 1}', "line 1, column 1: Expecting value", id="comment"),
        pytest.param('{"mtu": 1', "line 1, column 10", id="cut off"),
        pytest.param("[1, 2]", "the top level is a list; expected an object", id="list"),
        pytest.param('"text"', "the top level is a string;", id="string"),
        pytest.param("null", "the top level is null;", id="null"),
        pytest.param("true", "the top level is a boolean;", id="boolean"),
        pytest.param("1.5", "the top level is a number;", id="number"),
        pytest.param(
            '{\n"debug": true,\n"mtu": 1,\n"debug": false\n}',
            'key "debug" appears 2 times in one object; expected once',
            id="repeated key",
        ),
        pytest.param(
            '{"log-opts": {"a.b": 1, "a.b": 1}}', 'key "a.b" appears 2 times', id="nested repeat"
        ),
        pytest.param(
            '{\n"mtu": NaN}',
            "value NaN; expected a number. Correct the value (see line 2)",
            id="NaN",
        ),
        pytest.param('{"mtu": -Infinity}', "value -Infinity; expected a number", id="infinity"),
        pytest.param('{"mtu": 1e999}', "number 1e999 is out of range", id="overflow"),
        pytest.param('{"a": ' + "[" * 100_000, "cannot read JSON", id="too deep"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(DaemonJsonError) as error:
        parse(text, PATH)
    assert str(error.value).startswith(PATH)
    assert message in str(error.value)


def test_repeated_key_names_its_lines() -> None:
    with pytest.raises(DaemonJsonError, match=r"\(see lines 2, 4\)"):
        parse('{\n"debug": true,\n"mtu": 1,\n"debug" : false\n}')


def test_a_broken_long_line_is_shown_around_its_error() -> None:
    text = '{"labels": [' + ", ".join(f'"n={n}"' for n in range(1000)) + " oops]}"
    with pytest.raises(DaemonJsonError) as error:
        parse(text)
    _, line, caret, *_ = str(error.value).splitlines()
    assert len(line) < 140
    assert line[caret.index("^") :].startswith("oops]}")


def test_text_that_is_not_utf8_is_refused_with_its_place() -> None:
    with pytest.raises(DaemonJsonError, match=r"byte 0xfc at line 2, column 15; expected"):
        decode('{\n  "labels": ["ü=1"]}'.encode("latin-1"), PATH)
    assert decode('{"labels": ["ü=1"]}'.encode()) == '{"labels": ["ü=1"]}'


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"labels": ["ü=1"]}, id="umlaut"),
        pytest.param({"labels": ["\ud800"]}, id="half a surrogate pair"),
        pytest.param({}, id="empty"),
    ],
)
def test_rendered_text_can_be_written_and_read_back(data: Json) -> None:
    assert parse(decode(render(data).encode())) == data


def test_rendered_text_is_indented_by_four_and_readable() -> None:
    assert render({"z": ["ü"], "a": {}}) == '{\n    "z": [\n        "ü"\n    ],\n    "a": {}\n}\n'


# --- Merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "settings", "merged"),
    [
        pytest.param({}, {"debug": True}, {"debug": True}, id="new key"),
        pytest.param(
            {"debug": False, "mtu": 1},
            {"debug": True},
            {"debug": True, "mtu": 1},
            id="replaced in place",
        ),
        pytest.param(
            {"log-opts": {"tag": "x", "max-size": "1m"}},
            {"log-opts": {"max-size": "9m", "max-file": "3"}},
            {"log-opts": {"tag": "x", "max-size": "9m", "max-file": "3"}},
            id="object by key",
        ),
        pytest.param({"dns": ["a", "b"]}, {"dns": ["c"]}, {"dns": ["c"]}, id="list as a whole"),
        pytest.param({"debug": "yes"}, {"debug": True}, {"debug": True}, id="other type of value"),
        pytest.param(
            {"features": None},
            {"features": {"cdi": True}},
            {"features": {"cdi": True}},
            id="null is missing",
        ),
        pytest.param(
            {"features": {"cdi": True}},
            {"features": {}},
            {"features": {"cdi": True}},
            id="any object will do",
        ),
        pytest.param({}, {"features": {}}, {"features": {}}, id="empty object"),
        pytest.param({"mtu": 1}, {}, {"mtu": 1}, id="nothing wanted"),
    ],
)
def test_settings_are_merged_into_nested_keys(data: Json, settings: Json, merged: Json) -> None:
    before = json.dumps(data)
    assert render(merge(data, settings)) == render(merged)
    assert json.dumps(data) == before


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        pytest.param(
            {"features": []},
            {"features": {"cdi": True}},
            "features is a list; expected an object",
            id="list",
        ),
        pytest.param(
            {"log-opts": "x"},
            {"log-opts": {"tag": "y"}},
            "log-opts is a string; expected an object. Correct",
            id="string",
        ),
        pytest.param(
            {"features": {}},
            {"features": False},
            "features is an object; expected a boolean",
            id="object",
        ),
        pytest.param(
            {"runtimes": {"nvidia": {"args": {}}}},
            {"runtimes": {"nvidia": {"args": []}}},
            "runtimes.nvidia.args is an object; expected a list",
            id="nested",
        ),
    ],
)
def test_merge_refuses_an_object_against_anything_else(
    data: Json, settings: Json, message: str
) -> None:
    with pytest.raises(DaemonJsonError) as error:
        merge(data, settings, PATH)
    assert str(error.value).startswith(f"{PATH}: {message}")


@pytest.mark.parametrize(
    ("settings", "absent", "message"),
    [
        pytest.param(
            {"log-opts": {"tag": None}},
            [],
            "settings: log-opts.tag is null; expected a value",
            id="null",
        ),
        pytest.param(
            {"log-opts": {"tag": "x"}},
            ["log-opts.tag"],
            "absent: log-opts.tag contradicts settings",
            id="same key",
        ),
        pytest.param(
            {"log-opts": {"tag": "x"}},
            ["log-opts"],
            "absent: log-opts contradicts settings, which sets log-opts.tag",
            id="object around it",
        ),
        pytest.param({"mtu": {1, 2}}, [], "settings: not JSON data", id="no JSON type"),
        pytest.param({"mtu": float("inf")}, [], "settings: not JSON data", id="infinity"),
        pytest.param({}, ["a..b"], "absent: 'a..b'; expected a key path", id="empty part"),
        pytest.param({}, [7], "absent: 7; expected a key path", id="number"),
        pytest.param({}, [[]], "absent: []; expected a key path", id="no parts"),
    ],
)
def test_plan_refuses_settings(settings: Json, absent: list[object], message: str) -> None:
    with pytest.raises(DaemonJsonError) as error:
        plan_merge("{}", settings, absent)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        pytest.param("debug", ("debug",), id="top"),
        pytest.param("log-opts.max-size", ("log-opts", "max-size"), id="dotted"),
        pytest.param(["net", "com.docker.mtu"], ("net", "com.docker.mtu"), id="list"),
    ],
)
def test_a_key_is_split_at_its_dots(key: object, parts: tuple[str, ...]) -> None:
    assert split_key(key) == parts


def test_a_part_with_dots_is_quoted_in_words() -> None:
    assert join_key(("net", "com.docker.mtu")) == 'net."com.docker.mtu"'


@pytest.mark.parametrize(
    ("absent", "after"),
    [
        pytest.param(["debug"], {"log-opts": {"tag": "x"}, "net": {"a.b": 1}}, id="top"),
        pytest.param(
            ["log-opts.tag"],
            {"debug": True, "log-opts": {}, "net": {"a.b": 1}},
            id="object around it stays",
        ),
        pytest.param(
            [["net", "a.b"]],
            {"debug": True, "log-opts": {"tag": "x"}, "net": {}},
            id="dot in a key",
        ),
        pytest.param(
            ["mtu", "log-opts.no", "debug.x"],
            {"debug": True, "log-opts": {"tag": "x"}, "net": {"a.b": 1}},
            id="not there",
        ),
    ],
)
def test_absent_keys_are_removed(absent: list[object], after: Json) -> None:
    data = {"debug": True, "log-opts": {"tag": "x"}, "net": {"a.b": 1}}
    assert plan_merge(render(data), {}, absent).after == after


@pytest.mark.parametrize(
    ("text", "settings", "absent", "differences"),
    [
        pytest.param(
            '{"log-opts": {"max-size": "10m"}}',
            {"log-opts": {"max-size": "50m"}},
            [],
            ['log-opts.max-size: "10m" → "50m"'],
            id="changed",
        ),
        pytest.param(
            '{"log-opts": {}}',
            {"log-opts": {"tag": "ü"}},
            [],
            ['log-opts.tag: (not set) → "ü"'],
            id="new",
        ),
        pytest.param(
            '{"hosts": ["fd://"]}', {}, ["hosts"], ['hosts: ["fd://"] → (removed)'], id="removed"
        ),
        pytest.param('{"debug": 1}', {"debug": True}, [], ["debug: 1 → true"], id="1 is not true"),
        pytest.param('{"mtu": 1.0}', {"mtu": 1}, [], ["mtu: 1.0 → 1"], id="1.0 is not 1"),
        pytest.param(
            '{"a":{"y":2,"x":1}}', {"a": {"x": 1, "y": 2}}, [], [], id="order and form mean nothing"
        ),
        pytest.param(
            '{"dns": ["a", "b"]}',
            {"dns": ["b", "a"]},
            [],
            ['dns: ["a", "b"] → ["b", "a"]'],
            id="order of a list",
        ),
        pytest.param("", {"debug": True}, [], ["debug: (not set) → true"], id="empty file"),
        pytest.param(
            '{"proxies": {"http-proxy": "http://u:p@w@h:1/@"}}',
            {"proxies": {"http-proxy": "http://h:1"}},
            [],
            ['proxies.http-proxy: "http://***@h:1/@" → "http://h:1"'],
            id="credentials",
        ),
    ],
)
def test_differing_and_undeclared_keys_are_differences(
    text: str, settings: Json, absent: list[object], differences: list[str]
) -> None:
    assert owned_difference(text, settings, absent) == differences


def test_owned_difference_of_broken_json_is_an_error() -> None:
    with pytest.raises(DaemonJsonError, match=r"^daemon\.json: invalid JSON at line 1, column 2"):
        owned_difference("{", {"debug": True})


def test_owned_difference_sees_a_dropped_setting_through_the_record() -> None:
    first = plan_merge("{}", {"debug": True, "mtu": 9000})
    text = render(first.after)
    assert owned_difference(text, {"mtu": 9000}) == []
    assert owned_difference(text, {"mtu": 9000}, record=first.record) == ["debug: true → (removed)"]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        pytest.param(None, False, id="no file"),
        pytest.param("{}", False, id="object"),
        pytest.param("", True, id="empty"),
        pytest.param(" \n", True, id="blank"),
        pytest.param(BYTE_ORDER_MARK + "{}", True, id="byte order mark"),
    ],
)
def test_an_empty_file_or_byte_order_mark_is_rewritten(text: str | None, changed: bool) -> None:
    result = plan_merge(text, {})
    assert result.changed is changed
    assert not result.differences
    assert not result.restart_required
    assert not result.reload_required


# --- Whose value it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "settings", "edited", "then"),
    [
        pytest.param({"mtu": 1}, {"debug": True}, None, {"mtu": 1}, id="added key goes"),
        pytest.param({"mtu": 1}, {"mtu": 2}, None, {"mtu": 1}, id="replaced value comes back"),
        pytest.param({"mtu": 1}, {"mtu": 1}, None, {"mtu": 1}, id="the same value stays"),
        pytest.param({}, {"log-opts": {"tag": "x"}}, None, {}, id="object of ours goes when empty"),
        pytest.param(
            {"log-opts": {}},
            {"log-opts": {"tag": "x"}},
            None,
            {"log-opts": {}},
            id="object of theirs stays",
        ),
        pytest.param({"a": {}}, {"a": {"b": {"c": 1}}}, None, {"a": {}}, id="up to what was there"),
        pytest.param(
            {"features": None}, {"features": {"cdi": True}}, None, {}, id="null counts as missing"
        ),
        pytest.param(
            {},
            {"log-opts": {"tag": "x"}},
            {"log-opts": {"tag": "x", "env": "y"}},
            {"log-opts": {"env": "y"}},
            id="their key in our object",
        ),
        pytest.param(
            {}, {"debug": True}, {"debug": False}, {"debug": False}, id="their value for our key"
        ),
        pytest.param({"mtu": 1}, {"mtu": 2}, {"mtu": 3}, {"mtu": 3}, id="their newer value"),
        pytest.param({"mtu": 1}, {"mtu": 2}, {}, {}, id="they removed it"),
        pytest.param(
            {},
            {"log-opts": {"tag": "x"}},
            {"log-opts": "text"},
            {"log-opts": "text"},
            id="they made it another type",
        ),
    ],
)
def test_a_dropped_setting(original: Json, settings: Json, edited: Json | None, then: Json) -> None:
    first = plan_merge(render(original), settings)
    found = first.after if edited is None else edited
    second = plan_merge(render(found), {}, record=first.record)
    assert second.after == then
    assert second.record == ()


def test_a_value_edited_by_hand_is_repaired_while_it_is_wanted() -> None:
    first = plan_merge("{}", {"debug": True})
    assert plan_merge('{"debug": false}', {"debug": True}, record=first.record).after == {
        "debug": True
    }


def test_an_object_that_two_runs_filled_goes_when_both_settings_go() -> None:
    first = plan_merge("{}", {"log-opts": {"tag": "x"}})
    both = {"log-opts": {"tag": "x", "env": "y"}}
    second = plan_merge(render(first.after), both, record=first.record)
    assert plan_merge(render(second.after), {}, record=second.record).after == {}


def test_without_its_record_a_value_counts_as_the_users() -> None:
    first = plan_merge("{}", {"debug": True})
    second = plan_merge(render(first.after), {"debug": True}, record=())
    assert not second.changed
    assert plan_merge(render(second.after), {}, record=second.record).after == {"debug": True}


def test_the_record_survives_its_file() -> None:
    record = plan_merge('{"mtu": 1}', {"mtu": 2, "net": {"a.b": [1]}}).record
    assert record == (OwnedKey(("mtu",), 2, 1, 1), OwnedKey(("net", "a.b"), [1], 0))
    text = update_record("", PATH, record)
    assert read_record(text, PATH) == record
    assert read_record(text, "/other") == ()


def test_the_record_keeps_the_entries_of_other_files() -> None:
    mine = plan_merge("{}", {"mtu": 2}).record
    text = update_record(update_record("", "/other", mine), PATH, mine)
    assert read_record(update_record(text, PATH, ()), "/other") == mine
    assert update_record(update_record(text, PATH, ()), "/other", ()) == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="no JSON"),
        pytest.param("[]", id="no object"),
        pytest.param('{"/etc/docker/daemon.json": {}}', id="no list"),
        pytest.param('{"/etc/docker/daemon.json": [7]}', id="no entry"),
        pytest.param('{"/etc/docker/daemon.json": [{"key": ["a"]}]}', id="entry without a value"),
        pytest.param(
            '{"/etc/docker/daemon.json": [{"key": "", "ours": 1, "existed": 0, "before": 1}]}',
            id="entry without a key",
        ),
        pytest.param(
            '{"/etc/docker/daemon.json": [{"key": ["a"], "ours": 1, "existed": 2, "before": 1}]}',
            id="entry with a wrong depth",
        ),
    ],
)
def test_a_broken_record_is_an_error(text: str) -> None:
    with pytest.raises(DaemonJsonError):
        read_record(text, PATH)


# --- Properties, on made-up files ---------------------------------------------------------------


def made_up(seed: int) -> Json:
    """Return a made-up object; keys in capitals always hold objects, so that any two can merge."""
    dice = random.Random(seed)

    def value() -> Any:
        return dice.choice([True, 1, 1.0, 0, "", "x", [], [1], [{"a": None}], "ü"])

    def obj(depth: int) -> Json:
        keys = dice.sample(
            ["a", "b", "c", "d.e", *(["A", "B"] if depth else [])], dice.randint(0, 4)
        )
        return {key: obj(depth - 1) if key.isupper() else value() for key in keys}

    return obj(3)


def untouched(data: Json, settings: Json) -> Json:
    """Return what of ``data`` the settings do not set, in order and without emptied objects."""
    rest = {}
    for key, value in data.items():
        if key not in settings:
            rest[key] = value
        elif isinstance(value, dict) and (inner := untouched(value, settings[key])):
            rest[key] = inner
    return rest


SEEDS = range(0, 3000, 3)


def test_merging_twice_is_merging_once() -> None:
    for seed in SEEDS:
        data, settings = made_up(seed), made_up(seed + 1)
        once = merge(data, settings)
        assert render(merge(once, settings)) == render(once), seed


def test_unknown_keys_are_kept_in_their_order() -> None:
    for seed in SEEDS:
        data, settings = made_up(seed), made_up(seed + 1)
        merged = merge(data, settings)
        assert render(untouched(merged, settings)) == render(untouched(data, settings)), seed


def test_a_second_run_changes_nothing() -> None:
    for seed in SEEDS:
        first = plan_merge(render(made_up(seed)), made_up(seed + 1))
        second = plan_merge(render(first.after), made_up(seed + 1), record=first.record)
        assert not second.changed, seed
        assert second.differences == [], seed
        assert second.record == first.record, seed


def test_differences_are_empty_exactly_when_nothing_changes() -> None:
    for seed in SEEDS:
        result = plan_merge(render(made_up(seed)), made_up(seed + 1))
        assert bool(result.differences) is result.changed, seed
        assert result.changed is (result.restart_required or result.reload_required), seed


def test_taking_everything_back_gives_the_original() -> None:
    for seed in SEEDS:
        original = made_up(seed)
        first = plan_merge(render(original), made_up(seed + 1))
        second = plan_merge(render(first.after), made_up(seed + 2), record=first.record)
        assert second.after == merge(original, made_up(seed + 2)), seed
        last = plan_merge(render(second.after), {}, record=second.record)
        assert last.after == original, seed
        assert last.record == (), seed


# --- Restart or reload --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "restart", "reload"),
    [
        pytest.param({}, {}, False, False, id="nothing"),
        pytest.param({}, {"debug": True}, False, True, id="debug"),
        pytest.param({"debug": True}, {}, True, False, id="debug removed"),
        pytest.param({"debug": True}, {"debug": None}, True, False, id="debug nulled"),
        pytest.param({"max-concurrent-downloads": 9}, {}, False, True, id="reset by a reload"),
        pytest.param(
            {"runtimes": {"a": {"path": "x"}}},
            {"runtimes": {}},
            False,
            True,
            id="one runtime removed",
        ),
        pytest.param({"runtimes": {"a": {"path": "x"}}}, {}, True, False, id="runtimes removed"),
        pytest.param({"features": {"buildkit": True}}, {}, False, True, id="buildkit"),
        pytest.param({}, {"features": {"cdi": True}}, True, False, id="cdi"),
        pytest.param(
            {"features": {"cdi": True}},
            {"features": {"cdi": True, "buildkit": True}},
            False,
            True,
            id="buildkit next to cdi",
        ),
        pytest.param({}, {"log-opts": {"tag": "x"}}, True, False, id="log-opts"),
        pytest.param({}, {"debug": True, "log-driver": "local"}, True, False, id="both kinds"),
        pytest.param({}, {"no-such-key": 1}, True, False, id="unknown"),
    ],
)
def test_changed_keys_require_a_restart_or_a_reload(
    before: Json, after: Json, restart: bool, reload: bool
) -> None:
    result = Merge(before, after, record=(), plain=True)
    assert (result.restart_required, result.reload_required) == (restart, reload)


# --- The unit's flags ---------------------------------------------------------------------------

UNIT = """\
ExecStart={ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// \
--containerd=/run/containerd/containerd.sock $DOCKER_OPTS ; ignore_errors=no ; start_time=[n/a] ; \
stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
Environment=%s
EnvironmentFiles=/etc/default/docker (ignore_errors=yes)
EnvironmentFiles=/etc/docker.env (ignore_errors=no)
"""
PLAIN = {"hosts": "-H", "containerd": "--containerd"}


@pytest.mark.parametrize(
    ("unit", "environments", "flags"),
    [
        pytest.param(UNIT % "", [], PLAIN, id="Debian's"),
        pytest.param(UNIT % "DOCKER_OPTS=--debug", [], PLAIN | {"debug": "--debug"}, id="inline"),
        pytest.param(
            UNIT % '"DOCKER_OPTS=-D --mtu 9"',
            [],
            PLAIN | {"debug": "-D", "mtu": "--mtu"},
            id="inline, quoted",
        ),
        pytest.param(
            UNIT % "",
            ['# DOCKER_OPTS="-D"\nDOCKER_OPTS="--label=a=b --dns 192.0.2.1"\n'],
            PLAIN | {"labels": "--label", "dns": "--dns"},
            id="file",
        ),
        pytest.param(
            UNIT % "DOCKER_OPTS=-D", ["X=1", "DOCKER_OPTS=\n"], PLAIN, id="a later file wins"
        ),
        pytest.param(UNIT % "", ['DOCKER_OPTS="-D'], PLAIN, id="quote that is not closed"),
        pytest.param(
            "ExecStart={ argv[]=dockerd -Hunix:///x --add-runtime a=b ; x }",
            [],
            {"hosts": "-H", "add-runtime": "--add-runtime"},
            id="short flag with its value",
        ),
        pytest.param("Environment=\n", [], {}, id="no such unit"),
    ],
)
def test_flags_of_the_unit_are_read(
    unit: str, environments: list[str], flags: dict[str, str]
) -> None:
    assert read_unit_flags(unit, environments) == flags


def test_environment_files() -> None:
    assert list_environment_files(UNIT % "") == ["/etc/default/docker", "/etc/docker.env"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param({"hosts": ["tcp://"]}, [("hosts", "-H")], id="hosts"),
        pytest.param(
            {"proxies": {"http-proxy": "x"}}, [("http-proxy", "--http-proxy")], id="proxies"
        ),
        pytest.param({"proxies": "x"}, [], id="proxies of a wrong type"),
        pytest.param({"log-opts": {"hosts": "x"}}, [], id="same name further down"),
        pytest.param({"debug": True}, [], id="none"),
    ],
)
def test_conflicts(data: Json, found: list[tuple[str, str]]) -> None:
    assert find_conflicts(data, {"hosts": "-H", "http-proxy": "--http-proxy"}) == found


def test_credentials_are_masked_and_nothing_else() -> None:
    text = '{"a": "http://me:s3cr3t@h:1", "b": "https://h/@x", "c": "me@h", "d": "fd://"}'
    assert (
        mask_credentials(text)
        == '{"a": "http://***@h:1", "b": "https://h/@x", "c": "me@h", "d": "fd://"}'
    )


# --- The module ---------------------------------------------------------------------------------

Run = Callable[..., dict[str, Any]]


class Host:
    """Where a run of the module happens: its files, and programs that are not the machine's."""

    def __init__(self, root: Path) -> None:
        self.path = root / "docker" / "daemon.json"
        self.record = root / "lib" / "daemon_json.json"
        self.bin = root / "bin"
        self.bin.mkdir()

    def write(self, text: str | bytes, mode: int = 0o644) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        self.path.chmod(mode)

    def program(self, name: str, script: str) -> None:
        file = self.bin / name
        file.write_text("#!/bin/sh\n" + script)
        file.chmod(0o755)

    def stray_files(self) -> list[str]:
        return [file.name for file in self.path.parent.iterdir() if file.name.startswith(".")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(tmp_path)

    def get_bin_path(module: AnsibleModule, name: str, *_: object) -> str | None:
        file = host.bin / name
        return str(file) if file.exists() else None

    monkeypatch.setattr(AnsibleModule, "get_bin_path", get_bin_path)
    yield host
    if host.path.parent.exists():
        assert host.stray_files() == []


@pytest.fixture
def run(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the module with parameters and returns its result."""

    def run(check: bool = False, diff: bool = False, **params: Any) -> dict[str, Any]:
        arguments = {
            "path": str(host.path),
            "record": str(host.record),
            "owner": pwd.getpwuid(os.getuid()).pw_name,
            "group": grp.getgrgid(os.getgid()).gr_name,
            "_ansible_check_mode": check,
            "_ansible_diff": diff,
            "_ansible_tmpdir": str(tmp_path),
        }
        with patch_module_args(arguments | params), pytest.raises(SystemExit):
            daemon_json.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_first_run_then_rerun(host: Host, run: Run) -> None:
    settings = {"log-driver": "local", "log-opts": {"max-size": "50m"}}
    first = run(settings=settings)
    assert first["changed"]
    assert first["settings"] == settings
    assert first["restart_required"]
    assert not first["reload_required"]
    assert first["notes"] == ["Not validated: this host has no dockerd yet."]
    assert host.path.read_text() == render(settings)
    assert host.path.stat().st_mode & 0o7777 == 0o644
    assert host.record.stat().st_mode & 0o7777 == 0o600
    before = host.path.stat()
    second = run(settings=settings, diff=True)
    assert not second["changed"]
    assert not second["restart_required"]
    assert "diff" not in second
    assert host.path.stat().st_ino == before.st_ino


def test_check_mode_tells_and_touches_nothing(host: Host, run: Run) -> None:
    host.write('{"mtu": 1}')
    result = run(check=True, diff=True, settings={"mtu": 2}, backup=True)
    assert result["changed"]
    assert result["differences"] == ["mtu: 1 → 2"]
    assert result["diff"]["before"] == '{"mtu": 1}'
    assert result["diff"]["after"] == render({"mtu": 2})
    assert host.path.read_text() == '{"mtu": 1}'
    assert not host.record.exists()
    assert [file.name for file in host.path.parent.iterdir()] == ["daemon.json"]


def test_an_equal_file_of_another_form_keeps_its_form_but_not_its_mode(
    host: Host, run: Run
) -> None:
    host.write('{"mtu":1}', mode=0o666)
    told = run(check=True, settings={"mtu": 1})
    assert told["changed"]
    assert host.path.stat().st_mode & 0o7777 == 0o666
    result = run(diff=True, settings={"mtu": 1})
    assert result["changed"]
    assert not result["restart_required"]
    assert not result["reload_required"]
    assert (result["diff"]["before"], result["diff"]["after"]) == (
        {"mode": "0666"},
        {"mode": "0644"},
    )
    assert host.path.read_text() == '{"mtu":1}'
    assert host.path.stat().st_mode & 0o7777 == 0o644
    assert not run(settings={"mtu": 1})["changed"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_private_file_stays_private(host: Host, run: Run, mode: int) -> None:
    host.write('{"proxies": {"http-proxy": "http://me:secret@proxy"}}', mode=mode)
    assert run(settings={"mtu": 1})["changed"]
    assert host.path.stat().st_mode & 0o7777 == mode
    assert not run(settings={"mtu": 1})["changed"]
    run(settings={"mtu": 1}, mode="0644")
    assert host.path.stat().st_mode & 0o7777 == 0o644


def test_taking_back_restores_the_users_file_and_forgets(host: Host, run: Run) -> None:
    host.write('{"mtu": 1, "dns": ["192.0.2.1"]}')
    run(settings={"mtu": 2, "features": {"cdi": True}})
    assert run(settings={})["settings"] == {"mtu": 1, "dns": ["192.0.2.1"]}
    assert not host.record.exists()
    assert not run(settings={})["changed"]


def test_nothing_wanted_and_nothing_there_makes_nothing(host: Host, run: Run) -> None:
    assert not run(settings={})["changed"]
    assert not host.path.parent.exists()
    assert not host.record.parent.exists()


def test_a_lost_record_is_written_again(host: Host, run: Run) -> None:
    run(settings={"mtu": 2})
    host.record.unlink()
    assert run(check=True, settings={"mtu": 2})["changed"]
    assert not host.record.exists()
    assert run(settings={"mtu": 2})["changed"]
    assert host.record.exists()
    assert not run(settings={"mtu": 2})["changed"]


def test_a_record_that_others_can_write_is_closed(host: Host, run: Run) -> None:
    run(settings={"mtu": 2})
    host.record.chmod(0o666)
    assert run(settings={"mtu": 2})["changed"]
    assert host.record.stat().st_mode & 0o777 == 0o600
    assert not run(settings={"mtu": 2})["changed"]


@pytest.mark.parametrize("broken", [b"{", b"\xff"], ids=["no JSON", "no UTF-8"])
def test_a_broken_record_is_made_anew_and_told(host: Host, run: Run, broken: bytes) -> None:
    run(settings={"mtu": 2})
    host.record.write_bytes(broken)
    result = run(settings={"mtu": 2})
    assert result["changed"]
    assert not result["differences"]
    assert "started again" in result["notes"][0]
    assert read_record(host.record.read_text(), str(host.path))


def test_a_link_to_a_file_that_others_can_replace_is_refused(
    host: Host, run: Run, tmp_path: Path
) -> None:
    host.write("{}")
    real = tmp_path / "real.json"
    host.path.rename(real)
    host.path.symlink_to(real)
    assert f"found a symbolic link to {real}" in run(settings={"mtu": 2})["msg"]
    assert json.loads(real.read_text()) == {}


@pytest.mark.usefixtures("only_root_writes")
def test_a_link_stays_and_its_file_is_written(host: Host, run: Run, tmp_path: Path) -> None:
    host.write("{}")
    real = tmp_path / "real.json"
    host.path.rename(real)
    host.path.symlink_to(real)
    result = run(settings={"mtu": 2})
    assert host.path.is_symlink()
    assert json.loads(real.read_text()) == {"mtu": 2}
    assert result["path"] == str(real)


@pytest.mark.parametrize("text", ["", BYTE_ORDER_MARK + '{"mtu": 2}'], ids=["empty", "mark"])
def test_a_file_that_old_engines_do_not_read_is_rewritten_and_named(
    host: Host, run: Run, text: str
) -> None:
    host.write(text)
    result = run(settings={"mtu": 2})
    assert result["changed"]
    assert "Engines before 23.0 do not start" in result["notes"][0]
    assert host.path.read_bytes() == render({"mtu": 2}).encode()
    assert not run(settings={"mtu": 2})["changed"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"mtu": 1,}', "invalid JSON at line 1, column 1", id="broken"),
        pytest.param(b"[]", "the top level is a list; expected an object", id="list"),
        pytest.param(
            b"\xff\xfe{\x00}\x00", "byte 0xff at line 1, column 1; expected UTF-8", id="UTF-16"
        ),
        pytest.param(b'{"mtu": {}}', "mtu is an object; expected a number", id="type"),
    ],
)
def test_a_file_that_cannot_be_merged_fails_untouched(
    host: Host, run: Run, content: bytes, message: str
) -> None:
    host.write(content, mode=0o600)
    result = run(settings={"mtu": 2})
    assert result["failed"]
    assert result["msg"].startswith(str(host.path))
    assert message in result["msg"]
    assert host.path.read_bytes() == content
    assert host.path.stat().st_mode & 0o7777 == 0o600
    assert not host.record.exists()


def test_a_folder_in_the_files_place_is_told(host: Host, run: Run) -> None:
    host.path.mkdir(parents=True)
    assert run(settings={"mtu": 2})["msg"].startswith(f"Cannot read or write {host.path}: Is a dir")


def test_an_unknown_owner_fails_before_the_file_is_touched(host: Host, run: Run) -> None:
    host.write('{"mtu": 1}')
    result = run(settings={"mtu": 2}, owner="no-such-user")
    assert "no-such-user" in result["msg"]
    assert host.path.read_text() == '{"mtu": 1}'


def test_a_backup_holds_the_old_content(host: Host, run: Run) -> None:
    host.write('{"mtu": 1}')
    result = run(settings={"mtu": 2}, backup=True)
    assert Path(result["backup_file"]).read_text() == '{"mtu": 1}'
    assert "backup_file" not in run(settings={"mtu": 2}, backup=True)


def test_credentials_show_nowhere(host: Host, run: Run) -> None:
    proxy = {"proxies": {"http-proxy": "http://me:s3cr3t@proxy:3128"}}
    host.write(render(proxy))
    result = run(diff=True, settings={"mtu": 2}, absent=["proxies.http-proxy"])
    assert "s3cr3t" not in json.dumps(result)
    assert "http://***@proxy:3128" in result["diff"]["before"]
    host.write(render(proxy))
    assert run(settings={})["settings"]["proxies"]["http-proxy"] == "http://***@proxy:3128"
    assert "s3cr3t" in host.path.read_text()


# --- The module and dockerd ---------------------------------------------------------------------

ACCEPTS = 'test "$1 $2" = "--validate --config-file" && cat "$3" > "${0%/*}/seen"'
REFUSES = 'echo "unable to configure the Docker daemon with file $3: bad" >&2; exit 1'
TOO_OLD = 'printf "Status: unknown flag: --validate\\nSee ..., Code: 125\\n" >&2; exit 1'


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_dockerd_validates_the_new_content(host: Host, run: Run, check: bool) -> None:
    host.program("dockerd", ACCEPTS)
    result = run(check=check, settings={"mtu": 2})
    assert result["changed"]
    assert result["notes"] == []
    assert (host.bin / "seen").read_text() == render({"mtu": 2})


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_a_refusal_leaves_the_old_file(host: Host, run: Run, check: bool) -> None:
    host.write('{"mtu": 1}')
    host.program("dockerd", REFUSES)
    result = run(check=check, settings={"mtu": 2}, backup=True)
    assert result["failed"]
    assert (
        f"of {host.path}: unable to configure the Docker daemon with file {host.path}: bad."
        in result["msg"]
    )
    assert host.path.read_text() == '{"mtu": 1}'
    assert not host.record.exists()
    assert [file.name for file in host.path.parent.iterdir()] == ["daemon.json"]


def test_an_engine_too_old_to_validate_is_noted(host: Host, run: Run) -> None:
    host.program("dockerd", TOO_OLD)
    result = run(settings={"mtu": 2})
    assert result["changed"]
    assert result["notes"] == [
        "Not validated: this host's dockerd is older than 23.0 and cannot validate."
    ]


def test_an_unchanged_file_is_not_validated(host: Host, run: Run) -> None:
    host.write('{"mtu": 2}')
    run(settings={"mtu": 2})
    host.program("dockerd", REFUSES)
    assert not run(settings={"mtu": 2})["changed"]


def test_validation_can_be_switched_off(host: Host, run: Run) -> None:
    host.program("dockerd", REFUSES)
    assert run(settings={"mtu": 2}, validate="")["notes"] == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(
            "no-such-program %s", "program no-such-program not found", id="missing program"
        ),
        pytest.param("dockerd --validate", "expected %s instead", id="no place for the file"),
        pytest.param("dockerd '%s", "expected a command", id="quote that is not closed"),
    ],
)
def test_a_wrong_command_is_told(host: Host, run: Run, command: str, message: str) -> None:
    assert message in run(settings={"mtu": 2}, validate=command)["msg"]
    assert not host.path.exists()


def systemctl(host: Host, unit: str) -> None:
    (host.bin / "unit").write_text(unit)
    host.program("systemctl", 'test "$3" = docker.service && cat "${0%/*}/unit"')


def test_a_key_that_the_unit_sets_too_is_refused(host: Host, run: Run) -> None:
    systemctl(host, UNIT % "")
    result = run(settings={"hosts": ["tcp://127.0.0.1:2375"]})
    assert "hosts is set twice: in" in result["msg"]
    assert "by -H on dockerd's command line in docker.service" in result["msg"]
    assert not host.path.exists()


def test_a_conflict_that_is_there_already_is_a_warning(host: Host, run: Run) -> None:
    systemctl(host, UNIT % "")
    host.write('{"hosts": []}')
    result = run(settings={"hosts": []})
    assert not result["differences"]
    assert "hosts is set twice: in" in json.dumps(result["warnings"])


def test_flags_in_an_environment_file_count(host: Host, run: Run, tmp_path: Path) -> None:
    options = tmp_path / "default"
    options.write_bytes(b'# caf\xe9\nDOCKER_OPTS="--log-level debug"\n')
    systemctl(host, (UNIT % "").replace("/etc/default/docker", str(options)))
    assert "by --log-level on" in run(settings={"log-level": "info"})["msg"]


@pytest.mark.parametrize("unit", ["docker.service", ""], ids=["no systemd", "off"])
def test_the_unit_is_not_asked_for(host: Host, run: Run, unit: str) -> None:
    host.program("systemctl", "echo System has not been booted with systemd >&2; exit 1")
    assert run(settings={"hosts": []}, unit=unit)["changed"]


# --- Defaults ------------------------------------------------------------------------------------

DEFAULTS = {"live-restore": True, "log-driver": "json-file", "log-opts": {"max-size": "50m"}}
JSON_FILE = {"log-driver": "json-file", "log-opts": {"max-size": "50m"}}


@pytest.mark.parametrize(
    ("file", "settings", "after"),
    [
        pytest.param({}, {}, DEFAULTS, id="nobody set anything"),
        pytest.param(
            {"log-driver": "local"},
            {},
            {"log-driver": "local", "live-restore": True},
            id="another log driver has other options",
        ),
        pytest.param(
            {"log-driver": "json-file"},
            {},
            {"log-driver": "json-file", "live-restore": True, "log-opts": {"max-size": "50m"}},
            id="the same log driver",
        ),
        pytest.param(
            {"log-opts": {"max-size": "1m", "labels": "a"}},
            {},
            {
                "log-opts": {"max-size": "1m", "labels": "a"},
                "live-restore": True,
                "log-driver": "json-file",
            },
            id="an option that somebody set",
        ),
        pytest.param(
            {"live-restore": False}, {}, {"live-restore": False, **JSON_FILE}, id="set to false"
        ),
        pytest.param({"live-restore": None}, {}, DEFAULTS, id="null is not set"),
        pytest.param(
            {"log-driver": "local"},
            {"log-driver": "journald"},
            {"log-driver": "journald", "live-restore": True},
            id="the inventory names the key",
        ),
        pytest.param(
            {}, {"log-opts": {}}, {"log-opts": {"max-size": "50m"}, **DEFAULTS}, id="empty object"
        ),
    ],
)
def test_defaults_apply_to_keys_that_nobody_set(file: Json, settings: Json, after: Json) -> None:
    planned = plan_merge(json.dumps(file), settings, defaults=DEFAULTS)
    assert planned.after == after
    # What was written stays so, with the record of it and without.
    again = plan_merge(json.dumps(after), settings, record=planned.record, defaults=DEFAULTS)
    assert (again.after, again.record) == (after, planned.record)
    assert plan_merge(json.dumps(after), settings, defaults=DEFAULTS).after == after


def test_a_written_default_is_repaired_and_taken_back() -> None:
    written = plan_merge(None, {}, defaults=DEFAULTS)
    edited = json.dumps({**DEFAULTS, "log-opts": {"max-size": "1m"}})
    repaired = plan_merge(edited, {}, record=written.record, defaults=DEFAULTS)
    assert (repaired.after, repaired.record) == (DEFAULTS, written.record)
    again = plan_merge(json.dumps(DEFAULTS), {}, record=repaired.record, defaults=DEFAULTS)
    assert not again.changed
    gone = json.dumps({"live-restore": True, "log-opts": {"max-size": "50m"}})
    assert plan_merge(gone, {}, record=written.record, defaults=DEFAULTS).after == DEFAULTS
    assert plan_merge(json.dumps(DEFAULTS), {}, record=written.record).after == {}


def test_a_value_that_a_default_replaced_once_comes_back() -> None:
    """Earlier versions merged their defaults over the values of the host."""
    replaced = plan_merge('{"log-driver": "local"}', {"log-driver": "json-file"})
    now = plan_merge(json.dumps(replaced.after), {}, record=replaced.record, defaults=DEFAULTS)
    assert now.after == {"log-driver": "local", "live-restore": True}


NVIDIA = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}


@pytest.mark.parametrize(
    ("name", "settings", "left"),
    [
        ("nvidia", {}, {}),
        ("nvidia", {"default-runtime": "nvidia"}, {"default-runtime": "nvidia"}),
        ("nvidia", {"default-runtime": "runc"}, {"default-runtime": "runc"}),
        ("runc", {}, {"default-runtime": "runc"}),
        ("io.containerd.runc.v2", {}, {"default-runtime": "io.containerd.runc.v2"}),
        # It was broken before, and is not the project's.
        ("sysbox", {}, {"default-runtime": "sysbox"}),
    ],
)
def test_a_default_runtime_goes_with_its_runtime(name: str, settings: Json, left: Json) -> None:
    written = plan_merge(None, NVIDIA)
    file = json.dumps({**written.after, "default-runtime": name})
    removed = plan_merge(file, settings, record=written.record)
    assert removed.after == left
    dropped = 'default-runtime: "nvidia" → (removed)' in removed.differences
    assert dropped == (not left)
    assert plan_merge(file, settings, ["runtimes.nvidia"]).after == {"runtimes": {}, **left}


# --- Consent and the way back -------------------------------------------------------------------

BUSY = "container train uses a GPU"
RUNNING = "#!/bin/sh\n[ $1 = is-active ]"


@pytest.fixture
def busy(host: Host, monkeypatch: pytest.MonkeyPatch, only_root_writes: None) -> Host:
    """A host with a running engine that must not be restarted with the policy idle."""
    host.write('{"mtu": 1}')
    host.program("systemctl", RUNNING)

    def ask_obstacle(policy: str, keeps_running: bool) -> str:
        return BUSY if policy == "idle" else ""

    monkeypatch.setattr(restart_consent, "ask_obstacle", ask_obstacle)
    return host


@pytest.mark.parametrize("check", [True, False])
def test_a_change_that_restarts_a_busy_engine_waits(busy: Host, run: Run, check: bool) -> None:
    result = run(check, settings={"mtu": 2}, restart="idle")
    assert not result["changed"]
    assert not result["restart_required"]
    assert result["differences"] == ["mtu: 1 → 2"]
    assert result["slipway_waiting"] == [
        f"change of {busy.path} (restarts docker.service) waits: {BUSY}."
    ]
    assert busy.path.read_text() == '{"mtu": 1}'
    assert not busy.record.exists()


@pytest.mark.parametrize(
    ("settings", "script", "parameters"),
    [
        ({"debug": True}, RUNNING, {"restart": "idle"}),
        ({"mtu": 2}, "#!/bin/sh\nexit 3", {"restart": "idle"}),
        ({"mtu": 2}, RUNNING, {"restart": "always"}),
        ({"mtu": 2}, RUNNING, {"restart": "idle", "unit": ""}),
        ({"mtu": 2}, RUNNING, {}),
    ],
    ids=["only a reload", "engine does not run", "always", "another daemon", "by default"],
)
def test_other_changes_do_not_wait(
    busy: Host, run: Run, settings: Json, script: str, parameters: dict[str, Any]
) -> None:
    busy.program("systemctl", script)
    result = run(settings=settings, **parameters)
    assert result["changed"]
    assert "slipway_waiting" not in result


def test_the_previous_content_comes_back_with_its_record(busy: Host, run: Run) -> None:
    run(settings={"debug": True})
    old, old_record = busy.path.read_text(), busy.record.read_text()
    previous = f"{busy.record}.previous"
    run(check=True, settings={"mtu": 2})
    assert not Path(previous).exists()
    run(settings={"mtu": 2})
    # A second change before the restart: the engine still runs with the first content.
    run(settings={"mtu": 3})
    assert daemon_json_previous.restore(previous) == str(busy.path)
    assert (busy.path.read_text(), busy.record.read_text()) == (old, old_record)
    assert not Path(previous).exists()
    assert daemon_json_previous.restore(previous) == ""


def test_a_file_that_was_not_there_is_removed_again(busy: Host, run: Run) -> None:
    busy.path.unlink()
    run(settings={"mtu": 2})
    assert daemon_json_previous.restore(f"{busy.record}.previous") == str(busy.path)
    assert not busy.path.exists()
    assert not busy.record.exists()


def test_content_with_which_the_engine_failed_is_not_written_again(busy: Host, run: Run) -> None:
    previous = f"{busy.record}.previous"
    run(settings={"mtu": 2})
    daemon_json_previous.restore(previous)
    refused = run(settings={"mtu": 2}, restart="never")
    assert "docker.service did not start with the new content" in refused["msg"]
    assert "mtu: 1 → 2" in refused["msg"]
    assert busy.path.read_text() == '{"mtu": 1}'
    assert run(settings={"mtu": 3}, restart="never")["changed"]
    daemon_json_previous.delete(previous)
    assert run(settings={"mtu": 2}, restart="never")["changed"]


@pytest.mark.parametrize(
    ("before", "after", "keeps"),
    [
        ({}, {"log-driver": "local"}, True),
        ({}, {"features": {"cdi": True}}, True),
        ({}, {"features": {"containerd-snapshotter": True}}, False),
        ({"data-root": "/a"}, {"data-root": "/b"}, False),
        ({"live-restore": True}, {"live-restore": False}, False),
    ],
)
def test_live_restore_does_not_work_across_every_change(
    before: Json, after: Json, keeps: bool
) -> None:
    assert plan_merge(json.dumps(before), after).keeps_containers is keeps
