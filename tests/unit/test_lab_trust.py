# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates and public keys that throwaway hosts and their controller trust."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import pytest

from lab import trust


def pem(content: bytes, width: int = 64) -> str:
    body = base64.b64encode(content).decode()
    lines = "\n".join(body[i : i + width] for i in range(0, len(body), width))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----"


PUBLIC, COMPANY, OTHER = b"a public authority" * 9, b"a company's own" * 9, b"another"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param("", 0, id="empty"),
        pytest.param(f"# comment\n{pem(PUBLIC)}\n\n{pem(COMPANY)}\n", 2, id="two-and-a-comment"),
        pytest.param(pem(PUBLIC) + "\n" + pem(PUBLIC, width=76), 1, id="same-in-two-widths"),
        pytest.param(pem(PUBLIC).replace("\n", "\r\n"), 1, id="carriage-returns"),
        pytest.param(pem(PUBLIC)[:-30], 0, id="cut-off"),
        pytest.param(
            "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----", 0, id="bad-base64"
        ),
        pytest.param("-----BEGIN PRIVATE KEY-----\nYWJj\n-----END PRIVATE KEY-----", 0, id="key"),
    ],
)
def test_certificates_are_read_from_pem_text(text: str, count: int) -> None:
    assert len(trust.certificates(text)) == count


@pytest.mark.parametrize(
    ("trusted", "distribution", "own"),
    [
        pytest.param([pem(PUBLIC)], [pem(PUBLIC, 76)], [], id="nothing-of-its-own"),
        pytest.param([pem(PUBLIC) + pem(COMPANY)], [pem(PUBLIC)], [COMPANY], id="one"),
        pytest.param([pem(COMPANY), pem(COMPANY)], [], [COMPANY], id="in-two-bundles-counts-once"),
        pytest.param(
            [pem(PUBLIC), pem(OTHER)], [pem(COMPANY), pem(OTHER)], [PUBLIC], id="several-texts"
        ),
        pytest.param([""], [pem(PUBLIC)], [], id="no-bundle"),
    ],
)
def test_own_certificates_are_those_the_distribution_lacks(
    trusted: list[str], distribution: list[str], own: list[bytes]
) -> None:
    found = trust.own_certificates(trusted, distribution)
    assert set(found) == set(trust.certificates("\n".join(map(pem, own))))


def test_bundles_in_environment_variables_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "BUNDLE", tmp_path / "missing.crt")
    shipped = tmp_path / "distribution"
    (shipped / "mozilla").mkdir(parents=True)
    (shipped / "mozilla/public.crt").write_text(pem(PUBLIC))
    monkeypatch.setattr(trust, "DISTRIBUTION", shipped)
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("\n".join(map(pem, (PUBLIC, COMPANY, OTHER))))
    environment = {"SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": ""}
    found = trust.controller_certificates(environment, host_bundle=pem(OTHER))
    assert list(found.values()) == [pem(COMPANY)]
    assert trust.controller_certificates({}, host_bundle="") == {}


def test_tar_has_a_file_for_each_certificate() -> None:
    own = trust.certificates(pem(PUBLIC) + pem(COMPANY))
    with tarfile.open(fileobj=io.BytesIO(trust.certificates_tar(own))) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar.getmembers()}
    # update-ca-certificates reads only files with this suffix.
    assert all(name.endswith(".crt") and "/" not in name for name in contents)
    assert len(contents) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("", "a,10.0.0.2 ssh-ed25519 KEY\n", id="first"),
        pytest.param(
            "a,10.0.0.9 ssh-ed25519 OLD\na,10.0.0.9 ssh-rsa OLD\n",
            "a,10.0.0.2 ssh-ed25519 KEY\n",
            id="host-was-recreated",
        ),
        pytest.param(
            "b,10.0.0.2 ssh-ed25519 OLD\n",
            "a,10.0.0.2 ssh-ed25519 KEY\n",
            id="address-was-another-host's",
        ),
        pytest.param(
            "aa,10.0.0.20 ssh-ed25519 OTHER\n",
            "aa,10.0.0.20 ssh-ed25519 OTHER\na,10.0.0.2 ssh-ed25519 KEY\n",
            id="similar-names-are-kept",
        ),
    ],
)
def test_known_hosts_has_exactly_the_hosts_keys(before: str, after: str) -> None:
    keys = ["ssh-ed25519 KEY root@a"]
    assert trust.known_hosts_with(before, "a", "10.0.0.2", keys) == after
    assert trust.known_hosts_with(after, "a", "10.0.0.2", keys) == after


def test_unreadable_file_is_empty(tmp_path: Path) -> None:
    assert trust.read_text(tmp_path / "missing") == ""
    assert trust.read_text(tmp_path) == ""
