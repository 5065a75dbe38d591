# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the maker of a bundle downloads: its facts, the packages of roles, its apt settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import key_download, openpgp
from ansible_collections.slipway.host.plugins.module_utils.apt.run import Apt
from ansible_collections.slipway.host.plugins.module_utils.gpu import host
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    docker_engine,
    nvidia_container_toolkit,
    nvidia_driver,
)
from ansible_collections.slipway.host.plugins.modules import bundle_packages as maker
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    data,
    declared,
    host_plans,
    making,
    packages,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    Entry,
    Manifest,
)

from tests.unit.gpu_facts import facts

KERNEL = "6.8.0-149-generic"
T4 = "01:00.0 0302: 10de:1eb8 (rev a1)"
MODULES = {
    "docker_engine": docker_engine,
    "nvidia_driver": nvidia_driver,
    "nvidia_container_toolkit": nvidia_container_toolkit,
}


def plans(known: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the plans of all roles with vendors' packages on a host."""

    def template(value: Any) -> Any:
        return value

    return {name: role_plans.plan(name, options, template, known) for name in MODULES}


def test_a_maker_without_gpus_downloads_the_driver_of_others() -> None:
    maker_host = {**facts("none"), "docker_package": "docker.io", "docker_version": "26.1"}
    assert making.list_packages(plans(making.describe_fresh(maker_host, "", "")))["keys"] == {}
    fresh = making.describe_fresh(maker_host, f"\n  {T4}\n0000:02:00.0 0680: 10de:22a3\n", KERNEL)
    assert fresh["docker_package"] == ""
    (gpu,), (switch,) = host.host_facts(fresh).gpus, host.host_facts(fresh).nvswitches
    assert (gpu.address, gpu.device, switch.device) == ("01:00.0", 0x1EB8, 0x22A3)
    wanted = making.list_packages(plans(making.describe_fresh(maker_host, T4, KERNEL)))
    modules = "linux-modules-nvidia-580-server-open"
    assert {"docker.io", "nvidia-utils-580-server", f"{modules}-generic"} <= {*wanted["names"]}
    assert "linux-image-generic" in wanted["names"]
    assert f"{modules}-{KERNEL}" in wanted["optional"]
    assert [word for word in wanted["names"] if word.startswith("nvidia-container-toolkit=")]
    assert wanted["first"] == []


def test_the_sources_keys_and_pins_of_roles_are_used() -> None:
    fresh = making.describe_fresh(facts("none"), T4, KERNEL)
    options = {
        "docker_engine_source": "docker",
        "nvidia_driver_source": "cuda",
        "nvidia_driver_version": "580.173.02",
    }
    wanted = making.list_packages(plans(fresh, **options))
    assert {"docker-ce", "nvidia-dkms-580-open=580.173.02-*"} <= {*wanted["names"]}
    assert wanted["first"] == ["nvidia-driver-pinning-580"]
    assert sorted(wanted["keys"]) == [
        docker_engine.KEYRING,
        nvidia_container_toolkit.KEYRING,
        "/etc/apt/keyrings/slipway-nvidia-driver.asc",
    ]
    assert all(key["url"] and key["fingerprint"] for key in wanted["keys"].values())
    assert (
        "Pin: version 580.173.02-*"
        in wanted["files"][making.APT + "preferences.d/slipway-nvidia-driver.pref"]
    )
    assert docker_engine.KEYRING in wanted["files"][docker_engine.SOURCES]
    assert all("/apt.conf.d/" not in path for path in wanted["files"])
    assert f"linux-headers-{KERNEL}" in wanted["optional"]


@pytest.mark.parametrize("text", ["t4", "01:00.0 0302: 8086:1eb8", "01:00.0 0302: 10de:1eb8z", "#"])
def test_other_text_than_that_of_lspci_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"slipway_bundle_gpus: .*expected lines such as '01:00"):
        making.describe_fresh(facts("none"), text, "")


def test_a_role_that_does_not_support_the_host_is_refused() -> None:
    fresh = making.describe_fresh(facts("none"), T4, KERNEL)
    with pytest.raises(BundleError, match=r"^nvidia_driver: .*no NVIDIA driver is loaded.*\.$"):
        making.list_packages(plans(fresh, nvidia_driver_source="keep"))


def test_a_host_with_packages_of_a_bundle_has_no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    known = making.describe_fresh(facts("none"), T4, KERNEL)
    index = Entry(f"packages/ubuntu-noble-x86_64/{packages.INDEX}", 1, "0" * 64, "package")
    manifests = [(index,), ()]
    asked = [Manifest({}, {}, {}, files) for files in manifests]
    monkeypatch.setattr(declared, "read_named", lambda *_words: asked.pop(0))

    def plan(name: str, **options: Any) -> Any:
        return host_plans.plan(name, options, lambda value: value, known)["owned"]

    name = "nvidia_container_toolkit"
    closed, usual = plan(name), plan(name)
    assert usual == plans(known)[name]["owned"]
    assert (closed["keyrings"], closed["packages"]) == ([], usual["packages"])
    paths = [one["path"] for one in closed["files"]]
    assert nvidia_container_toolkit.PREFERENCES in paths
    assert not [path for path in paths if path.startswith(host_plans.SOURCES)]
    # Roles without a source do not read the bundle, and a removal removes sources.
    removed = plan(name, nvidia_container_toolkit_state="absent")
    assert {"path": nvidia_container_toolkit.SOURCES, "state": "absent"} in removed["files"]
    assert plan("docker_engine", docker_engine_source="distribution")["files"]
    assert asked == []


SHA256 = "5" * 64


@pytest.mark.parametrize(
    ("checksum", "in_bundle", "asks"),
    [
        (f"sha256:{SHA256}", SHA256, False),
        (f"sha256:{SHA256}", "6" * 64, True),
        (f"sha512:{SHA256 * 2}", SHA256 * 2, True),
        ("", SHA256, True),
    ],
)
def test_no_server_is_asked_for_a_data_set_in_the_bundle(
    monkeypatch: pytest.MonkeyPatch, checksum: str, in_bundle: str, asks: bool
) -> None:
    manifest = Manifest({}, {}, {}, (Entry(f"data/{in_bundle}", 1, in_bundle, "data"),))
    monkeypatch.setattr(declared, "read_named", lambda *_words: manifest)
    entry = {"name": "w", "url": "https://d.example/w.tar", "checksum": checksum, "optional": True}
    options = {"ml_data_archives": [entry]}
    plan = host_plans.plan("ml_data", options, lambda value: value, facts("none"))
    (owned,) = plan["owned"]["datasets"]
    assert ("offer" in owned) is asks
    found = data.find(manifest, plan["trees"])
    assert found == ({} if asks else {"/srv/shared/data/w": f"data/{SHA256}"})


def test_the_settings_of_apt_are_a_copy_with_those_of_the_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, etc = tmp_path / "root", tmp_path / "etc"
    for path, text in {
        "sources.list": "deb [signed-by=/etc/apt/keyrings/k.asc] http://a.example b c\n",
        "sources.list.d/old.list": "old",
        "sources.list.d/own.sources": "URIs: file:///a mirror+file:/b\n",
        "preferences.d/p.pref": "p",
        "auth.conf": "secret",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "sources.list.d/folder").mkdir()
    downloaded: list[tuple[str, str]] = []

    def download(url: str, fingerprint: str) -> bytes:
        downloaded.append((url, fingerprint))
        return b"\x99key"

    monkeypatch.setattr(key_download, "download", download)
    monkeypatch.setattr(openpgp, "to_text", lambda _packets: "text")
    files = {
        "/etc/apt/sources.list.d/old.list": None,
        "/etc/apt/sources.list.d/absent.list": None,
        "/etc/apt/sources.list.d/new.sources": "Signed-By: /etc/apt/keyrings/k.asc\n",
    }
    keys = {
        "/etc/apt/keyrings/k.asc": {"url": "https://u.example", "fingerprint": "ab" * 20},
        "/etc/apt/keyrings/l.gpg": {"url": "https://v.example", "fingerprint": "cd" * 20},
    }
    maker.write_settings(etc, files, keys, str(root))
    assert {str(path.relative_to(etc)) for path in etc.rglob("*") if path.is_file()} == {
        *("sources.list", "sources.list.d/own.sources", "sources.list.d/new.sources"),
        *("preferences.d/p.pref", "k.asc", "l.gpg"),
    }
    own = (etc / "sources.list.d/own.sources").read_text()
    assert own == "URIs: copy:///a mirror+file:/b\n"
    assert f"signed-by={etc}/k.asc]" in (etc / "sources.list").read_text()
    assert (etc / "sources.list.d/new.sources").read_text() == f"Signed-By: {etc}/k.asc\n"
    assert ((etc / "k.asc").read_text(), (etc / "l.gpg").read_bytes()) == ("text", b"\x99key")
    assert downloaded == [("https://u.example", "AB" * 20), ("https://v.example", "CD" * 20)]
    assert {path.stat().st_mode & 0o777 for path in etc.rglob("*")} == {0o755, 0o644}


def test_the_pins_in_packages_choose_the_other_packages(
    tmp_path: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc/preferences.d").mkdir(parents=True)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/pin-580_580-1_amd64.deb").touch()
    program("dpkg-deb", 'mkdir -p "$3/etc/apt/preferences.d"; echo p >"$3/etc/apt/preferences.d/p"')
    changed: list[Any] = []
    monkeypatch.setattr(Apt, "change", lambda _self, command, **_more: changed.append(command))
    module: Any = SimpleNamespace()
    maker.use_preferences(Apt(module, 1), tmp_path, [])
    assert changed == []
    maker.use_preferences(Apt(module, 1), tmp_path, ["pin-580"])
    assert changed[0][-1] == "pin-580" and "--download-only" in changed[0]
    assert (tmp_path / "etc/preferences.d/p").read_text() == "p\n"
