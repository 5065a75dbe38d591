# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write one signed file from which a controller without a network installs Slipway.

The bundle contains this project, the Python packages of its environment, and on request images,
Debian packages and data sets for hosts. `./slipway setup` and `./slipway site` use it with
`--bundle FILE`. The same inputs always give the same bytes. See docs/bundle.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (  # noqa: E402
    archive,
    data,
    images,
    packages,
    signature,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (  # noqa: E402
    BundleError,
    Entry,
    Manifest,
    check_older_name,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (  # noqa: E402
    Bundle,
    open_bundle,
)

from lab.errors import LabError  # noqa: E402
from lab.hosts import Group  # noqa: E402
from lab.saved_bases import save_bases  # noqa: E402
from tools import bundle_contents, bundle_setup  # noqa: E402

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROJECT = "project.tar"
# The kinds of files that may be in an older bundle only.
OMITTED = ("wheel", "image", "package", "data", "base")
# Base images of hosts of the demo.
BASES = "bases"
# What Ansible evaluates in a variable.
TEMPLATES = ("{{", "{%", "{#")


@dataclass(frozen=True)
class Request:
    """What a bundle contains; options of ansible-playbook reach hosts with images and packages."""

    pythons: list[str]
    images: list[str]
    packages: bool
    data: list[Path]
    demo: bool
    ansible: list[str]


def refuse_templates(*texts: object) -> None:
    """Raise BundleError for a path or name that Ansible would evaluate."""
    for text in map(str, texts):
        mark = next((mark for mark in TEMPLATES if mark in text), "")
        if mark:
            raise BundleError(
                f"{text}: {mark} in a name; expected a name that Ansible does not evaluate. Rename "
                "the file or folder."
            )


def copy_images(folder: Path, request: Request) -> dict[str, Path]:
    """Copy images from the hosts of the inventory; return the files by path in the bundle."""
    variables = {
        "bundle_layout": str(folder.resolve()),
        "ml_images_present": request.images,
        # An inventory may still use the old name: clear it, or the run would stop.
        "ml_images_names": None,
    }
    what = f"the images {', '.join(request.images)}"
    play("bundle_images", variables, request, what, folder / "index.json")
    return dict(images.layout_files(folder))


def copy_packages(folder: Path, request: Request) -> dict[str, Path]:
    """Copy packages from the hosts of the inventory; return the files by path in the bundle."""
    play("bundle_packages", {"bundle_pool": str(folder.resolve())}, request, "packages", folder)
    return dict(packages.pool_files(folder))


def copy_bases(folder: Path) -> dict[str, Path]:
    """Save the base images of the demo's hosts; return the files by path in the bundle."""
    try:
        return {f"{BASES}/{file.name}": file for file in save_bases(Group("demo"), folder)}
    except LabError as error:
        raise BundleError(str(error)) from None


def play(
    playbook: str, variables: Mapping[str, object], request: Request, what: str, made: Path
) -> None:
    """Run a playbook that copies WHAT from hosts; raise BundleError unless it made a file."""
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "-e", json.dumps(variables)]
    done = subprocess.run([*command, *request.ansible], cwd=ROOT, check=False)
    if done.returncode or not made.exists():
        raise BundleError(
            f"cannot copy {what}: ansible-playbook ended with {done.returncode}; expected hosts "
            "that offer them. See the errors above."
        )


def collect(folder: Path, request: Request, key: Path) -> tuple[Manifest, dict[str, Path]]:
    """Write the contents of a bundle below FOLDER; return its manifest and the files by path."""
    commit, project = bundle_contents.pack_project()
    (folder / PROJECT).write_bytes(project)
    signed = signature.sign(project, key, signature.PROJECT_NAMESPACE)
    (folder / f"{PROJECT}.sig").write_bytes(signed)
    files = {PROJECT: folder / PROJECT, f"{PROJECT}.sig": folder / f"{PROJECT}.sig"}
    wheels = {}
    collections = bundle_contents.download_collections(folder)
    for python in request.pythons:
        downloaded = [*bundle_contents.download_wheels(python, folder), collections]
        wheels[python] = sorted(f"wheels/{wheel.name}" for wheel in downloaded)
        files.update({f"wheels/{wheel.name}": wheel for wheel in downloaded})
    if request.images:
        files.update(copy_images(folder / "layout", request))
    if request.packages:
        files.update(copy_packages(folder / "pool", request))
    if request.demo:
        files.update(copy_bases(folder / BASES))
    for source in request.data:
        files[f"{data.FOLDER}/{_describe(data.FOLDER, source).sha256}"] = source
    entries = tuple(_describe(path, files[path]) for path in sorted(files))
    manifest = Manifest(
        requested={
            "python": request.pythons,
            "images": request.images,
            "packages": request.packages,
            "data": len(request.data),
            "demo": request.demo,
        },
        project={"commit": commit},
        controller={
            "locks": bundle_setup.digest_locks(),
            "machine": platform.machine(),
            "wheels": wheels,
        },
        files=entries,
    )
    return manifest, files


def _describe(path: str, source: Path) -> Entry:
    by_path = {PROJECT: "project", f"{PROJECT}.sig": "signature"}
    by_folder = {
        images.FOLDER: "image",
        packages.FOLDER: "package",
        data.FOLDER: "data",
        BASES: "base",
        "wheels": "wheel",
    }
    kind = by_path.get(path) or by_folder[path.partition("/")[0]]
    with source.open("rb") as content:
        size = source.stat().st_size
        return Entry(path, size, archive.copy(content, size, lambda _: None), kind)


def leave_out(manifest: Manifest, older: Bundle) -> Manifest:
    """Return a manifest that omits the files of an older bundle.

    The project and its signature stay: a new controller reads them without Slipway.
    """
    files = tuple(
        replace(e, omitted=e.sha256 in older.by_digest and e.kind in OMITTED)
        for e in manifest.files
    )
    since = {"name": older.path.name, "manifest": older.digest}
    return replace(manifest, files=files, since=since)


def build(target: Path, request: Request, key: Path, older: Bundle | None = None) -> str:
    """Write a bundle, and its public key beside it; return the fingerprint of the key."""
    if not target.parent.is_dir():
        raise BundleError(f"folder {target.parent}: not found; expected it. Create it first.")
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=target.parent) as temporary:
        folder = Path(temporary)
        manifest, files = collect(folder, request, key)
        if older:
            manifest = leave_out(manifest, older)
        content = manifest.as_json()
        signed = signature.sign(content, key)
        public = signature.public_key(signed)
        parts = [(archive.MANIFEST, content), (archive.SIGNATURE, signed)]
        stored = [(e.path, files[e.path]) for e in manifest.files if not e.omitted]
        archive.write(folder / "bundle", [*parts, *stored])
        (folder / "key").write_text(f"{public}\n", encoding="ascii")
        (folder / "key").replace(f"{target}.pub")
        (folder / "bundle").replace(target)
    return signature.fingerprint(public)


def open_older(path: Path, signer: Path | None, target: Path) -> Bundle:
    """Return the bundle PATH after a check of every byte; TARGET will omit its files."""
    try:
        check_older_name(path.name)
    except ValueError as error:
        raise BundleError(
            f"--since {path}: {error}; expected letters, digits and ._+~!-. Rename the file."
        ) from None
    bundle = open_bundle(path, signer)
    bundle.check()
    for needed in bundle.chain():
        if target.exists() and target.samefile(needed.path):
            raise BundleError(
                f"OUT {target} is a bundle that OUT would need; expected another file. Name "
                "another file for OUT."
            )
    return bundle


def describe(bundle: Bundle) -> str:
    """Check every byte of a bundle; return one line about it."""
    bundle.check()
    files = bundle.manifest.files
    omitted = sum(entry.omitted for entry in files)
    elsewhere = f", {omitted} of them in {bundle.older.path.name}" if omitted else ""
    commit = bundle.manifest.project.get("commit") or "none"
    return (
        f"{bundle.path}: {len(files)} files match{elsewhere}; signed with {bundle.signer}; "
        f"commit of the project: {commit}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(
        prog="./slipway bundle",
        usage="./slipway bundle OUT [OPTIONS], or: ./slipway bundle --verify FILE [--signer KEY]",
        description=str(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", nargs="?", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--python",
        action="append",
        choices=PYTHONS,
        help=f"also add the wheels for this Python; those for {RUNNING} are always there",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="KEY",
        help="sign with this SSH key; default: a key made once in ~/.local/state/slipway",
    )
    parser.add_argument(
        "--since",
        type=Path,
        metavar="OLD",
        help="omit the files of bundle OLD; OUT then needs OLD beside it",
    )
    parser.add_argument("--verify", type=Path, metavar="FILE", help="check a bundle, then exit")
    parser.add_argument(
        "--signer",
        type=Path,
        metavar="KEY",
        help="file with the public key that is trusted for FILE or OLD; default: your own key",
    )
    add_host_options(parser)
    words = sys.argv[1:] if arguments is None else arguments
    options = argparse.Namespace()
    _same, options.ansible = parser.parse_known_args(words, options)
    problem = find_problem(options, words)
    if problem:
        parser.error(problem)
    return options


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for contents that hosts get."""
    parser.add_argument(
        "--images",
        metavar="NAME,...",
        default="",
        help="also add these images, built on the hosts of the inventory; further options, such "
        "as -i and --limit, are those of ansible-playbook",
    )
    parser.add_argument(
        "--packages",
        action="store_true",
        help="also add the Debian packages that the roles install on the hosts of the inventory, "
        "for other hosts of the same releases",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="also add the base images of the demo's hosts on this machine, for "
        "./slipway demo --bundle OUT",
    )
    parser.add_argument(
        "--data",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="also add an archive of ml_data_archives that you downloaded; its entry needs the "
        "checksum sha256:...",
    )


def find_problem(options: argparse.Namespace, words: list[str]) -> str:
    """Return why the options do not fit each other, empty if they do."""
    if options.ansible and not (options.images or options.packages):
        return f"unknown option {options.ansible[0]}; expected one of --help"
    # Otherwise the value of such an option could be taken for OUT.
    if options.ansible and Path(words[0]) != options.out:
        return "OUT is not the first argument; expected ./slipway bundle OUT ..."
    if (options.out is None) == (options.verify is None):
        return "no OUT or --verify FILE; expected one of them"
    return ""


def run(options: argparse.Namespace) -> None:
    """Check or write a bundle, and print the result."""
    if options.verify:
        print(describe(open_bundle(options.verify, options.signer)))
        return
    older = open_older(options.since, options.signer, options.out) if options.since else None
    if older and older.path.parent.resolve() != options.out.parent.resolve():
        print(f"bundle: copy {older.path.name} beside {options.out.name} to use it")
    pythons = sorted({RUNNING, *(options.python or ())})
    names = sorted(filter(None, options.images.split(",")))
    if names or options.packages:
        refuse_templates(options.out.parent.resolve(), *names)
    files = [path.expanduser() for path in options.data]
    request = Request(pythons, names, options.packages, files, options.demo, options.ansible)
    fingerprint = build(options.out, request, options.key or signature.make_own_key(), older)
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.0f} MB, for Python {', '.join(pythons)}")
    print(f"key {fingerprint}: {options.out}.pub")
    if older:
        print(f"{options.out.name} has only the differences: keep {older.path.name} beside it")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    try:
        options = parse(arguments)
        for name in ("out", "verify", "since", "signer", "key"):
            if path := getattr(options, name):
                setattr(options, name, path.expanduser())
        with files_of(options.out or options.verify):
            run(options)
    except BundleError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
