# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry that the user runs: its address, and a check of connection, certificate and login.

The check runs on each host before its first change, as a script of this file alone. Standard
library of Python 3.10 only.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

OPTION = "ml_images_registry"
# Host, port and folder. Docker takes a first part without dot, colon or port for a user of its hub.
ADDRESS = re.compile(
    r"(?P<server>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?)"
    r"(?P<path>(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
)
KEYS = frozenset(("address", "ca", "username", "password"))
# Files of a job: the registry with its password, and the folder with the login for Docker.
DECLARED, CONFIG = "secrets/registry.json", "secrets/docker"
# Manifests that are read.
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
ANSWER_SECONDS, MAX_ANSWER = 15.0, 1 << 24
# OpenSSL's number of X509_V_ERR_HOSTNAME_MISMATCH.
NAME_MISMATCH = 62


class OwnRegistryError(Exception):
    """The registry cannot be used; the message is for a person."""


@dataclass(frozen=True)
class Registry:
    """server: host and port. path: folder of the images, with a slash at its start, or empty.

    ca: PEM certificates that are trusted beside those of the host. Neither ``repr`` nor messages
    have the password.
    """

    server: str
    path: str = ""
    ca: str = ""
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def prefix(self) -> str:
        """Return the beginning of the references of its images."""
        return f"{self.server}{self.path}/"

    @property
    def basic(self) -> str:
        """Return user and password as HTTP has them."""
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def read_manifest(self, name: str, tag: str) -> bytes:
        """Return the manifest of an image."""
        return _read(self, f"/v2{self.path}/{name}/manifests/{tag}")


def read_option(option: object) -> Registry | None:
    """Return the registry that the option declares, None for the address as text.

    Raise ValueError for a wrong value.
    """
    if option is None or isinstance(option, str):
        return None
    if not isinstance(option, Mapping) or not KEYS.issuperset(option) or "address" not in option:
        found = sorted(map(str, option)) if isinstance(option, Mapping) else type(option).__name__
        raise ValueError(
            f"{OPTION}: {found}; expected HOST/PATH as text, or a mapping with address and, if "
            "needed, ca, username and password. Correct the option."
        )
    values = {key: "" if value is None else str(value) for key, value in option.items()}
    address, ca = values["address"], values.get("ca", "")
    match = ADDRESS.fullmatch(address)
    is_registry = match and (re.search(r"[.:]", match["server"]) or match["server"] == "localhost")
    if match is None or not is_registry:
        raise ValueError(
            f"{OPTION}.address: {address!r}; expected HOST[:PORT][/PATH] without a scheme, with a "
            "full name of the host. TLS is always used. Correct the address."
        )
    if ca and ("BEGIN CERTIFICATE" not in ca or "PRIVATE KEY" in ca):
        raise ValueError(
            f"{OPTION}.ca: no certificate, or a private key with it; expected certificates in PEM "
            "form only. Correct the CA."
        )
    username, password = values.get("username", ""), values.get("password", "")
    if bool(username) != bool(password) or ":" in username:
        raise ValueError(
            f"{OPTION}: username {username!r} and {'a' if password else 'no'} password; expected "
            "both without a colon in the name, or neither. Correct the login."
        )
    return Registry(match["server"], match["path"], ca, username, password)


def pack(registry: Registry | None) -> dict[str, bytes]:
    """Return the files of a job that uses the registry; they contain the password."""
    if registry is None:
        return {}
    auths = {registry.server: {"auth": registry.basic}} if registry.username else {}
    return {
        DECLARED: json.dumps(asdict(registry)).encode(),
        f"{CONFIG}/config.json": json.dumps({"auths": auths}).encode(),
    }


def load(folder: Path) -> Registry | None:
    """Return the registry of the job in FOLDER, None if it has none."""
    try:
        return Registry(**json.loads((folder / DECLARED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def check_script(registry: Registry) -> str:
    """Return a script of Python that checks the registry; it contains the password.

    It prints why the registry cannot be used as JSON, an empty text if it can.
    """
    source, declared = Path(__file__).read_text(encoding="utf-8"), json.dumps(asdict(registry))
    return f"{source}\nprint(json.dumps(find_fault(json.loads({declared!r}))))\n"


def find_fault(declared: Mapping[str, str]) -> str:
    """Return why a registry cannot be used, empty if it can."""
    try:
        check(Registry(**declared))
    except OwnRegistryError as error:
        return str(error)
    return ""


def check(registry: Registry) -> None:
    """Fail unless the registry answers over TLS and accepts the login."""
    try:
        json.loads(_read(registry, "/v2/") or b"{}")
    except ValueError:
        raise OwnRegistryError(
            f"the registry {registry.server} answers without JSON; expected a registry of images. "
            f"Correct {OPTION}.address."
        ) from None


def _read(registry: Registry, path: str) -> bytes:
    """Return the answer of the registry; log in if it asks for a login."""
    opener = urllib.request.build_opener(
        # As Docker without a proxy for this registry.
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=_trust(registry)),
    )
    url = f"https://{registry.server}{path}"
    login = f"Basic {registry.basic}" if registry.username else ""
    answer = _open(opener, registry, url)
    if isinstance(answer, bytes):
        return answer
    scheme, _space, rest = answer.partition(" ")
    if scheme.lower() == "bearer":
        url_of_token = _token_url(registry, dict(re.findall(r'(\w+)="([^"]*)"', rest)))
        token = _open(opener, registry, url_of_token, login)
        login = f"Bearer {_parse_token(registry, token)}" if isinstance(token, bytes) else ""
    answer = _open(opener, registry, url, login) if login else answer
    if isinstance(answer, bytes):
        return answer
    found = f"login of {registry.username!r} refused" if registry.username else "no login"
    raise OwnRegistryError(
        f"login to the registry {registry.server} failed: {found} (401); expected an account of "
        f"this registry. Correct username and password in {OPTION}."
    )


def _parse_token(registry: Registry, answer: bytes) -> str:
    """Return the token in the answer of a server of tokens."""
    try:
        content = json.loads(answer)
        return str(content.get("token") or content["access_token"])
    except (ValueError, AttributeError, KeyError):
        raise OwnRegistryError(
            f"login to the registry {registry.server} failed: its server of tokens answers without "
            "a token; expected one. Correct the settings of the registry."
        ) from None


def _trust(registry: Registry) -> ssl.SSLContext:
    """Return the certificates that Docker trusts too: those of the host, and the CA."""
    context = ssl.create_default_context()
    if registry.ca:
        try:
            context.load_verify_locations(cadata=registry.ca)
        except (ssl.SSLError, ValueError):
            raise OwnRegistryError(
                f"{OPTION}.ca cannot be read: no certificate; expected certificates in PEM form. "
                "Correct the CA."
            ) from None
    return context


def _token_url(registry: Registry, challenge: Mapping[str, str]) -> str:
    """Return the URL of the server of tokens; the password never goes over plain HTTP."""
    realm = challenge.get("realm", "")
    if not realm.startswith("https://"):
        raise OwnRegistryError(
            f"login to the registry {registry.server} failed: its server of tokens is {realm!r}; "
            "expected an address with https. Correct the settings of the registry."
        )
    query = {key: challenge[key] for key in ("service", "scope") if key in challenge}
    return f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(query)}"


def _open(
    opener: urllib.request.OpenerDirector, registry: Registry, url: str, login: str = ""
) -> bytes | str:
    """Ask a server; return its answer, or the challenge if it asks for a login."""
    accept = ", ".join((*MANIFESTS, "application/json"))
    request = urllib.request.Request(url, headers={"Accept": accept})
    if login:
        # Unredirected: another server must not get the password.
        request.add_unredirected_header("Authorization", login)
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError as error:
        if error.code == 401 or (error.code == 403 and login):
            return str(error.headers.get("WWW-Authenticate") or "")
        raise OwnRegistryError(
            f"the registry {registry.server} answers with HTTP {error.code}; expected 200 or 401 "
            f"for {urllib.parse.urlsplit(url).path}. Correct {OPTION}.address, or start the "
            "registry there."
        ) from None
    except OSError as error:
        raise OwnRegistryError(_describe(registry, getattr(error, "reason", error))) from None
    except http.client.HTTPException as error:
        raise OwnRegistryError(_describe(registry, type(error).__name__)) from None


def _describe(registry: Registry, reason: object) -> str:
    """Return the sentence about a connection that failed."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        if reason.verify_code == NAME_MISMATCH:
            return (
                f"certificate of the registry {registry.server}: {reason.verify_message}; expected "
                f"a certificate with this name. Correct {OPTION}.address or the certificate."
            )
        return (
            f"certificate of the registry {registry.server}: {reason.verify_message}; expected one "
            f"that {OPTION}.ca or the host trusts. Correct the CA."
        )
    if isinstance(reason, ssl.SSLError):
        return (
            f"the registry {registry.server} does not use TLS: {reason.reason}; expected https. "
            "Configure a certificate in the registry."
        )
    return (
        f"cannot reach the registry {registry.server}: {reason}; expected an answer over https. "
        f"Start the registry, or correct {OPTION}.address."
    )
