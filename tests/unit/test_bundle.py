# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles: a reader accepts only what the signed manifest lists, and changes nothing otherwise."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    archive,
    manifest,
    signature,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    Entry,
    Manifest,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import open_bundle

CONTENTS = {"project.tar": b"project" * 200, "wheels/a.whl": b"a" * 512, "wheels/b.whl": b""}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path) -> Path:
    """A state folder with this user's key."""
    folder = tmp_path / "state"
    (folder / "slipway").mkdir(parents=True)
    for name in ("own", "own.pub"):
        target = folder / "slipway" / name.replace("own", "bundle-key")
        target.write_bytes((keys / name).read_bytes())
        target.chmod(0o600)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys of two people."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


def entry(path: str, content: bytes, omitted: bool = False) -> Entry:
    return Entry(path, len(content), hashlib.sha256(content).hexdigest(), "wheel", omitted)


def make_manifest(contents: dict[str, bytes] = CONTENTS, **changes: Any) -> Manifest:
    files = tuple(entry(path, contents[path]) for path in sorted(contents))
    empty = Manifest(requested={}, project={}, controller={}, files=files)
    return dataclasses.replace(empty, **changes)


def write(
    target: Path,
    key: Path,
    content: bytes | Manifest | None = None,
    contents: dict[str, bytes] = CONTENTS,
    namespace: str = signature.NAMESPACE,
) -> Path:
    """Write a bundle with any manifest, signed with a key."""
    content = make_manifest(contents) if content is None else content
    data = content.as_json() if isinstance(content, Manifest) else content
    signed = signature.sign(data, key, namespace)
    start: list[tuple[str, bytes | Path]] = [(archive.MANIFEST, data), (archive.SIGNATURE, signed)]
    target.unlink(missing_ok=True)
    archive.write(target, [*start, *sorted(contents.items())])
    return target


@pytest.fixture
def bundle(tmp_path: Path, keys: Path) -> Path:
    return write(tmp_path / "b.tar", keys / "own")


def refuse(path: Path, reason: str, signer: Path | None = None) -> None:
    with pytest.raises(BundleError, match=reason) as raised:
        open_bundle(path, signer).check()
    assert re.search(r"; expected .+\. [A-Z].+\.$", str(raised.value), re.S), raised.value


def test_the_files_of_a_bundle_are_those_of_its_manifest(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    opened.check()
    for item in opened.manifest.files:
        opened.extract(item, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == CONTENTS[item.path]
        (tmp_path / "out").unlink()


def test_tar_reads_a_bundle(bundle: Path) -> None:
    with tarfile.open(bundle) as opened:
        names = [member.name for member in opened]
        owners = {(member.uid, member.mtime, member.mode) for member in opened}
    assert names == [archive.MANIFEST, archive.SIGNATURE, *sorted(CONTENTS)]
    assert owners == {(0, 0, 0o644)}


def test_each_flipped_byte_is_refused(bundle: Path) -> None:
    content = bundle.read_bytes()
    # Each field of each header, and some bytes of each content and of the padding.
    positions = {*range(0, len(content), 61), *range(0, 512, 20), 124, 156, 157, len(content) - 1}
    for position in sorted(positions):
        changed = bytearray(content)
        changed[position] ^= 1
        bundle.write_bytes(changed)
        with pytest.raises(BundleError):
            open_bundle(bundle).check()
    assert len(positions) > 80


def test_a_damaged_file_is_named(bundle: Path) -> None:
    content = bundle.read_bytes()
    bundle.write_bytes(content.replace(b"a" * 512, b"a" * 511 + b"b"))
    refuse(bundle, r"b\.tar: wheels/a\.whl is damaged: SHA-256 ")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 600, 1100, 2000, -1024, -1])
def test_a_truncated_bundle_is_refused(bundle: Path, size: int) -> None:
    bundle.write_bytes(bundle.read_bytes()[:size])
    refuse(bundle, r"b\.tar: ")


@pytest.mark.parametrize("more", [b"\0", b"x" * 512, archive.header("x", 0) + archive.END])
def test_bytes_after_the_end_are_refused(bundle: Path, more: bytes) -> None:
    bundle.write_bytes(bundle.read_bytes() + more)
    refuse(bundle, "longer than its manifest says")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.size = 512 if kind == tarfile.REGTYPE else 0
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (member("../../etc/cron.d/x"), r"file '\.\./\.\./etc/cron\.d/x', 512 bytes"),
        (member("/etc/passwd"), "file '/etc/passwd'"),
        (member("wheels/b.whl"), "file 'wheels/b.whl'"),
        (member("wheels/a.whl", tarfile.SYMTYPE, "/etc/shadow"), "link 'wheels/a.whl', 0 bytes"),
        (member("wheels/a.whl", tarfile.LNKTYPE, "/etc/shadow"), "link 'wheels/a.whl'"),
        (member("wheels/a.whl", tarfile.CHRTYPE), "special file 'wheels/a.whl'"),
        (member("wheels/a.whl", tarfile.BLKTYPE), "special file 'wheels/a.whl'"),
        (member("wheels/a.whl", tarfile.FIFOTYPE), "special file 'wheels/a.whl'"),
        (member("wheels/a.whl", tarfile.DIRTYPE), "folder 'wheels/a.whl'"),
        (b"\0" * 512, "no header"),
        (b"\xff" * 512, "no header"),
    ],
)
def test_another_member_is_refused_by_its_name(bundle: Path, header: bytes, found: str) -> None:
    content = bundle.read_bytes()
    expected = archive.header("wheels/a.whl", 512)
    assert content.count(expected) == 1 and len(header) == 512
    bundle.write_bytes(content.replace(expected, header))
    refuse(bundle, rf"b\.tar: {found}.* in the place of wheels/a\.whl")


def test_a_bundle_that_is_no_tar_of_ours_is_refused(bundle: Path, tmp_path: Path) -> None:
    with tarfile.open(bundle, "w") as opened:
        opened.addfile(tarfile.TarInfo("../manifest.json"), io.BytesIO())
    refuse(bundle, r"file '\.\./manifest\.json', 0 bytes in the place of manifest\.json")
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path / "fifo", "fifo: not a file")
    refuse(tmp_path, "not a file|Is a directory")
    refuse(tmp_path / "none", "cannot open .*none: No such file")


def test_a_large_manifest_is_not_read(bundle: Path) -> None:
    bundle.write_bytes(archive.header(archive.MANIFEST, archive.MAX_BYTES[archive.MANIFEST] + 1))
    refuse(bundle, "in the place of manifest.json")


def test_only_trusted_keys_are_accepted(bundle: Path, keys: Path, state: Path) -> None:
    write(bundle, keys / "other")
    other = signature.fingerprint(signature.read_key(keys / "other.pub"))
    own = signature.fingerprint(signature.read_key(keys / "own.pub"))
    refuse(bundle, rf"b\.tar: signed with key {re.escape(other)}; expected {re.escape(own)}\.")
    assert open_bundle(bundle, keys / "other.pub").signer == other
    (state / "slipway/bundle-key.pub").unlink()
    refuse(bundle, r"expected a key that you name\. .* --signer BUNDLE\.pub")


def test_a_named_key_replaces_the_own_one(bundle: Path, keys: Path) -> None:
    refuse(bundle, "signed with key", keys / "other.pub")


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "a b c\n", "x @@\n", "x AAAA\n"),
        *("OWN\nOTHER\n", "OTHER\nOWN\n", "\nOWN\n", "# comment\nOWN\n", "OWN\n\n", "OWN\r\n"),
        *("OWN \fx\n", "OWN \x1cx\n", "OWN \x1b[2K\n", "OWN x\ty\n", " OWN\n", "\ufeffOWN\n"),
        *("OWN PRIVATE KEY\n", "cert-authority OWN\n", "ssh-rsa BLOB\n", "ssh-ed25519 AAAA\n"),
    ],
)
def test_a_file_of_a_signer_has_one_key_and_nothing_else(
    bundle: Path, tmp_path: Path, keys: Path, text: str
) -> None:
    own, other = (signature.read_key(keys / name) for name in ("own.pub", "other.pub"))
    text = text.replace("OWN", own).replace("OTHER", other).replace("BLOB", own.split()[1])
    (tmp_path / "key").write_bytes(text.encode())
    refuse(bundle, "key: not one line with a public key", tmp_path / "key")


def test_a_file_of_a_signer_may_have_a_comment(bundle: Path, tmp_path: Path, keys: Path) -> None:
    for end in (" Zoë at work\n", "\n", ""):
        (tmp_path / "key").write_text(signature.read_key(keys / "own.pub") + end)
        open_bundle(bundle, tmp_path / "key").check()
    refuse(bundle, "cannot read", tmp_path / "none")


def test_a_signature_of_other_content_is_refused(bundle: Path, keys: Path) -> None:
    write(bundle, keys / "own", namespace=signature.PROJECT_NAMESPACE)
    refuse(bundle, r"manifest\.json was changed after it was signed")
    data = make_manifest().as_json()
    changed = data.replace(b'"wheel"', b'"other"')
    content = write(bundle, keys / "own").read_bytes()
    bundle.write_bytes(content.replace(data, changed))
    refuse(bundle, r"manifest\.json was changed after it was signed")


def with_key_type(kind: bytes) -> bytes:
    """Return a signature of an invented key whose type is any text."""
    key = len(kind).to_bytes(4, "big") + kind
    blob = b"SSHSIG" + bytes([0, 0, 0, 1]) + len(key).to_bytes(4, "big") + key
    return signature._armored(blob)


@pytest.mark.parametrize(
    "change",
    [
        lambda signed: b"",
        lambda signed: b"x" * 300,
        lambda signed: signed + b"\n",
        lambda signed: signed.replace(b"\n", b"\r\n"),
        lambda signed: signed[:60] + signed[60:].lower(),
        lambda signed: signed.replace(b"\n-----END", b"=\n-----END"),
        lambda signed: with_key_type(b"ssh-ed25519 A\nslipway-bundle ssh-ed25519"),
        lambda signed: with_key_type(b"\xff"),
    ],
)
def test_a_text_that_is_no_signature_is_refused(
    keys: Path, change: Callable[[bytes], bytes]
) -> None:
    signed = signature.sign(b"content", keys / "own")
    with pytest.raises(BundleError, match=r"invalid signature|signed with key|changed"):
        signature.verify(b"content", change(signed), keys / "own.pub", "b.tar")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        *(
            (("files", 0, "path"), path, "leads out of the bundle")
            for path in ("../x", "/x", "a//b")
        ),
        *(
            (("files", 0, "path"), path, "leads out")
            for path in ("a/../b", ".x", "a/", "a\nb", "-x")
        ),
        (("files", 0, "path"), "a" * 251, "leads out"),
        (("files", 0, "path"), "wheels/b.whl", "unsorted or repeated paths"),
        (("files", 0, "path"), "z", "unsorted or repeated paths"),
        (("files", 0, "path"), 1, "invalid manifest.json"),
        (("files", 0, "size"), -1, "size -1"),
        (("files", 0, "size"), 1 << 51, "size 2251799813685248"),
        (("files", 0, "size"), True, "size True"),
        (("files", 0, "size"), 1.5, "size 1.5"),
        (("files", 0, "sha256"), "A" * 64, "SHA-256"),
        (("files", 0, "sha256"), None, "invalid manifest.json"),
        (("files", 0, "omitted"), "no", "kind of"),
        (("files", 0, "more"), 1, "invalid manifest.json"),
        (("files",), {"a": 1}, "invalid manifest.json"),
        (("files",), None, "invalid manifest.json"),
        (("controller",), 1, "invalid manifest.json"),
        (("since",), {"name": "../old.tar", "manifest": "0" * 64}, "older bundle"),
        (("since",), {"name": "old.tar", "manifest": "0"}, "older bundle"),
        (("since",), {"name": "old.tar"}, "invalid manifest.json"),
        (("format",), 2, "format 2; expected 1"),
        (("format",), None, "format None; expected 1"),
    ],
)
def test_an_invalid_manifest_is_refused_although_it_is_signed(
    tmp_path: Path, keys: Path, path: tuple[str | int, ...], value: Any, reason: str
) -> None:
    data = json.loads(make_manifest().as_json())
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    refuse(write(tmp_path / "b.tar", keys / "own", json.dumps(data).encode()), reason)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 99999])
def test_a_manifest_that_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"b\.tar: invalid manifest\.json"):
        manifest.read(content, "b.tar")


@pytest.fixture
def difference(tmp_path: Path, keys: Path, bundle: Path) -> Path:
    """A bundle that omits the wheels of another one."""
    new = {**CONTENTS, "project.tar": b"new project"}
    files = tuple(entry(path, new[path], omitted="wheels" in path) for path in sorted(new))
    since = {"name": bundle.name, "manifest": open_bundle(bundle).digest}
    content = make_manifest(files=files, since=since)
    return write(tmp_path / "new.tar", keys / "own", content, {"project.tar": b"new project"})


def test_omitted_files_come_from_the_older_bundle(difference: Path, tmp_path: Path) -> None:
    opened = open_bundle(difference)
    opened.check()
    opened.extract(opened.manifest.files[1], tmp_path / "a.whl")
    assert (tmp_path / "a.whl").read_bytes() == CONTENTS["wheels/a.whl"]


def test_a_difference_needs_exactly_its_older_bundle(
    difference: Path, bundle: Path, keys: Path
) -> None:
    content = bundle.read_bytes()
    bundle.write_bytes(content.replace(b"a" * 512, b"a" * 511 + b"b"))
    refuse(difference, r"b\.tar: wheels/a\.whl is damaged")
    write(bundle, keys / "own", make_manifest(project={"commit": "another"}))
    refuse(difference, r"b\.tar: another bundle than the one that new\.tar needs")
    bundle.unlink()
    refuse(difference, r"bundle b\.tar: not found in .*; expected it beside new\.tar")


def test_the_headers_of_an_older_bundle_are_checked_before_it_is_used(
    difference: Path, bundle: Path
) -> None:
    opened = open_bundle(difference)
    opened.check_headers()
    content = bundle.read_bytes()
    for changed, reason in ((content[:-1024], "truncated"), (None, "not found")):
        bundle.unlink()
        if changed:
            bundle.write_bytes(changed)
        with pytest.raises(BundleError, match=rf"b\.tar: .*{reason}"):
            open_bundle(difference).check_headers()


def test_an_omitted_file_has_the_size_of_the_older_one(
    tmp_path: Path, keys: Path, bundle: Path
) -> None:
    omitted = entry("wheels/a.whl", CONTENTS["wheels/a.whl"], omitted=True)
    since = {"name": bundle.name, "manifest": open_bundle(bundle).digest}
    content = make_manifest(files=(dataclasses.replace(omitted, size=513),), since=since)
    new = write(tmp_path / "new.tar", keys / "own", content, {})
    with pytest.raises(BundleError, match=r"wheels/a\.whl is in no bundle"):
        open_bundle(new).check_headers()


@pytest.mark.parametrize("since", [None, "older"])
def test_an_omitted_file_must_be_somewhere(
    tmp_path: Path, keys: Path, bundle: Path, since: str | None
) -> None:
    older = {"name": bundle.name, "manifest": open_bundle(bundle).digest} if since else None
    content = make_manifest(files=(entry("x", b"x", omitted=True),), since=older)
    new = write(tmp_path / "new.tar", keys / "own", content, {})
    refuse(new, "is in no bundle" if since else "no older bundle is named")


def test_the_own_key_is_made_once_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "fresh"))
    key = signature.make_own_key()
    made = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert signature.make_own_key().read_bytes() == made
    assert sorted(path.name for path in key.parent.iterdir()) == ["bundle-key", "bundle-key.pub"]
    signed = signature.sign(b"x", key)
    assert signature.public_key(signed) == signature.read_key(Path(f"{key}.pub"))


def test_a_key_that_cannot_sign_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"ssh-keygen: .*none.*; expected .*\. Check "):
        signature.sign(b"x", tmp_path / "none")
