# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the variables of ml_data become: owned state, what is done, and what is secret."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_data
from ansible_collections.slipway.host.plugins.module_utils.roles.ml_data import DataError

from tests.contract.tree import ROOT
from tests.unit import survey
from tests.unit.role_options import options

URL = "https://data.example.org/pets.tar.gz"
COMMIT = "0123456789" * 4


def plan(
    archives: Sequence[Any],
    repositories: Sequence[Any],
    disks: Sequence[str] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Return the plan of these data sets and repositories."""
    asked = options(
        "ml_data",
        folder="/srv/data",
        code_folder="/srv/code",
        archives=archives,
        repositories=repositories,
        **changes,
    )
    found: dict[str, Any] = ml_data.plan({}, {**asked, "ml_data_disks": disks})
    return found


def planned(
    archive: dict[str, Any] | None = None,
    repository: dict[str, Any] | None = None,
    disks: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the plan of one archive and one repository, each completed where it says little."""
    archives = [{"name": "pets", "url": URL, **archive}] if archive is not None else []
    course = {"name": "course", "url": "git@example.org:course", "revision": "v1"}
    repositories = [{**course, **repository}] if repository is not None else []
    return plan(archives, repositories, disks)


def test_without_declarations_nothing_is_owned() -> None:
    assert planned()["owned"] == {"packages": [], "folders": [], "datasets": [], "checkouts": []}


def test_data_sets_and_checkouts_are_owned_state() -> None:
    owned = planned({"checksum": f"SHA256:{'A' * 64}"}, {"owner": "alice"}, ("/mnt/d",))["owned"]
    assert owned == {
        "packages": [{"name": "ca-certificates"}, {"name": "git"}],
        "folders": [
            {"path": "/mnt/d/.slipway-unfinished", "entries": ["course", "pets"]},
            {"path": "/srv/code/.slipway-unfinished", "entries": ["course"]},
            {"path": "/srv/data/.slipway-unfinished", "entries": ["pets"]},
        ],
        "datasets": [
            {
                "path": "/srv/data/pets",
                "state": "present",
                "mode": "0755",
                "owner": "root",
                "group": "root",
                "version": f"sha256:{'a' * 64}",
                "places": ["/mnt/d/pets"],
            }
        ],
        "checkouts": [
            {
                "path": "/srv/code/course",
                "state": "present",
                "mode": "0755",
                "owner": "alice",
                "group": "root",
                "version": "git@example.org:course v1",
                "places": ["/mnt/d/course"],
                "url": "git@example.org:course",
                "revision": "v1",
                "settled": False,
            }
        ],
    }
    survey.check("ml_data", owned)


def test_only_a_whole_commit_is_known_without_git() -> None:
    assert planned(repository={"revision": COMMIT})["owned"]["checkouts"][0]["settled"]


def test_a_compression_that_python_lacks_is_installed() -> None:
    owned = planned({"url": "https://data.example.org/pets.tar.zst"})["owned"]
    assert {"name": "zstd"} in owned["packages"]


def test_an_absent_tree_needs_only_its_name() -> None:
    trees = plan(
        [{"name": "pets", "state": "absent"}],
        [{"name": "course", "state": "absent", "to": "/srv/there"}],
    )
    assert [tree["path"] for tree in trees["trees"]] == ["/srv/data/pets", "/srv/there"]
    assert trees["secrets"] == {} and trees["owned"]["packages"] == []


@pytest.mark.parametrize(
    ("url", "headers", "address"),
    [
        (URL, {}, (URL, URL, {})),
        (
            "https://me:p%40ss@a.example.org:8443/x",
            {},
            (
                "https://a.example.org:8443/x",
                "https://a.example.org:8443/x",
                {"Authorization": "Basic bWU6cEBzcw=="},
            ),
        ),
        (
            f"{URL}?signature=abc",
            {"X-Token": 7},
            (f"{URL}?signature=abc", f"{URL}?...", {"X-Token": "7"}),
        ),
        (
            "https://me:pass@a.example.org/x",
            {"Authorization": "Bearer b"},
            ("https://a.example.org/x", "https://a.example.org/x", {"Authorization": "Bearer b"}),
        ),
        ("git@example.org:x", {}, ("git@example.org:x", "git@example.org:x", {})),
        ("ssh://git@a/x", {}, ("ssh://git@a/x", "ssh://git@a/x", {})),
        ("ssh://git:pass@a/x", {}, ("ssh://git:pass@a/x", "ssh://git@a/x", {})),
    ],
)
def test_secrets_of_an_address_are_hidden(
    url: str, headers: dict[str, Any], address: tuple[str, str, dict[str, str]]
) -> None:
    found = ml_data.address("x", url, headers)
    assert (found.url, found.shown, found.headers) == address


def test_secrets_are_separate() -> None:
    archive = {"url": URL.replace("//", "//me:pass1@") + "?key=pass2", "headers": {"X": "pass3"}}
    found = planned(archive)
    assert "pass" not in json.dumps([found["trees"], found["owned"]])
    assert found["secrets"]["pets"]["headers"]["X"] == "pass3"


def test_the_address_of_an_optional_one_is_asked() -> None:
    found = plan(
        [{"name": "pets", "url": URL, "optional": True, "headers": {"X": "1"}}],
        [{"name": "c", "url": "https://a/c.git", "revision": "v1", "optional": True}],
        environment={"https_proxy": "http://p"},
    )["owned"]
    proxy = '{"https_proxy": "http://p"}'
    assert found["datasets"][0]["offer"] == ["/srv/data/pets", URL, URL, proxy, '{"X": "1"}']
    asked = "https://a/c.git/info/refs?service=git-upload-pack"
    offer = ["/srv/code/c", asked, "https://a/c.git v1", proxy, "{}"]
    assert found["checkouts"][0]["offer"] == offer


@pytest.mark.parametrize(
    ("size", "expected"),
    [("", 0), ("512", 512), ("30G", 30 * 1024**3), ("1.5T", 1536 * 1024**3), ("3 MiB", 3 << 20)],
)
def test_sizes_with_units_are_bytes(size: str, expected: int) -> None:
    assert planned({"size": size})["trees"][0]["size"] == expected


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        ({"name": "../pets"}, "invalid name; expected letters"),
        ({"name": ""}, "an entry without a name: invalid name"),
        ({"to": "pets"}, "path pets; expected an absolute path"),
        ({"to": "/srv/../etc/x"}, "expected an absolute path"),
        ({"to": "/srv"}, "at least two levels below /"),
        ({"url": ""}, "url and path are both set or both missing"),
        ({"path": "/srv/pets.zip"}, "url and path are both set or both missing"),
        ({"url": "", "path": "pets.zip"}, "path pets.zip; expected an absolute"),
        ({"url": "ftp://data.example.org/x"}, "expected http:// or https://"),
        ({"checksum": "sha256:abc"}, "one of md5, sha1, sha256, sha512"),
        ({"checksum": "a" * 64}, "one of md5, sha1, sha256, sha512"),
        ({"checksum": "md5:" + "x" * 32}, "all its hexadecimal digits"),
        ({"strip": -1}, "strip is -1; expected a number from 0"),
        ({"strip": "one"}, "strip is 'one'; expected a number from 0"),
        ({"mode": 493}, "mode is 493; expected four octal digits in quotes"),
        ({"mode": "755"}, "four octal digits"),
        ({"size": "much"}, "size is 'much'; expected a number and K, M, G or T"),
        ({"url": "", "path": "/srv/pets.zip", "optional": True}, "Remove optional"),
    ],
)
def test_a_bad_archive_is_named(archive: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        planned(archive)


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ({"url": ""}, "url or revision is missing"),
        ({"revision": ""}, "url or revision is missing"),
        ({"revision": "--upload-pack=x"}, "invalid revision '--upload-pack=x'"),
        ({"revision": "main~1"}, "expected a commit, tag or branch"),
        ({"url": "--upload-pack=x"}, "expected a commit, tag or branch"),
        ({"url": "https://a/x.git?key=1"}, "url contains a question mark"),
        ({"url": "https://[a/x.git"}, "invalid url"),
        ({"headers": {"X": "y"}}, "Remove headers"),
        ({"optional": True}, "Remove optional"),
        ({"mode": "2775"}, "git would run their hooks as root; expected an owner other than root"),
    ],
)
def test_a_bad_repository_is_named(repository: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        planned(repository=repository)


@pytest.mark.parametrize(
    ("archive", "repository", "words"),
    [
        ({"name": "course"}, {}, "course is declared twice"),
        ({"to": "/srv/code/course/data"}, {}, "contain each other"),
        ({"to": "/srv/code"}, {}, "contain each other"),
        ({"to": "/srv/code/course"}, {}, "contain each other"),
    ],
)
def test_trees_do_not_overlap(
    archive: dict[str, Any], repository: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        planned(archive, repository)


def test_a_disk_is_a_folder_on_it() -> None:
    with pytest.raises(DataError, match="ml_data_disks: path /mnt; expected an absolute path"):
        planned({}, disks=("/mnt",))


def test_an_incomplete_data_set_is_an_error() -> None:
    with pytest.raises(DataError, match="ml_data_archives: pets: url and path"):
        plan([{"name": "pets"}], [])


def examples() -> list[dict[str, Any]]:
    """Return the variables of the examples that the role's page and the inventory show."""
    page = (ROOT / "roles/ml_data/README.md").read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    (play,) = (block for block in found if isinstance(block, list))
    inventory = (ROOT / "inventory/hosts.example.yml").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^    # ml_data_archives:\n(?:    # .*\n)+", inventory, re.M)
    commented = yaml.safe_load(re.sub(r"(?m)^    # ", "", shown.replace("sha256:...", "")))
    return [play[0]["roles"][0]["vars"], commented, *(b for b in found if "ml_data_archives" in b)]


@pytest.mark.parametrize("example", examples(), ids=["page", "inventory", "secrets"])
def test_the_examples_that_are_shown_are_right(example: dict[str, Any]) -> None:
    repositories = example.get("ml_data_repositories", [])
    found = plan(example["ml_data_archives"], repositories)
    assert {tree["name"] for tree in found["trees"]} & {"dogscats", "scans"}
