# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a bundle, then run a command of Slipway with the images and packages in it.

Usage: ./slipway site --bundle FILE [--signer KEY] [OTHER ARGUMENTS ...]
       The same with plan, verify, upgrade, rollback, remove and demo in the place of site.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared  # noqa: E402
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (  # noqa: E402
    BundleError,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (  # noqa: E402
    Bundle,
    open_bundle,
)

from lab.engine import Engine  # noqa: E402
from lab.errors import LabError  # noqa: E402
from lab.saved_bases import load_base  # noqa: E402
from tools import bundle  # noqa: E402

# Arguments with which the demo creates no host.
WITHOUT_HOSTS = {"--destroy", "--check", "-C", "-h", "--help"}


def load_bases(checked: Bundle, engine: Engine) -> None:
    """Load the base images of a bundle that an engine lacks."""
    for entry in checked.manifest.files:
        if entry.kind == "base":
            load_base(engine, Path(entry.path).name, partial(checked.extract, entry))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Replace this process by the command, or exit if the bundle is refused."""
    verb, *words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog=f"./slipway {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--signer", type=Path)
    options, others = parser.parse_known_args(words)
    options.bundle = options.bundle.expanduser()
    options.signer = options.signer and options.signer.expanduser()
    try:
        bundle.refuse_templates(options.bundle, options.signer)
        with files_of(options.bundle):
            checked = open_bundle(options.bundle, options.signer)
            print(bundle.describe(checked), file=sys.stderr)
            if verb == "demo" and not WITHOUT_HOSTS & {*others}:
                load_bases(checked, Engine())
    except LabError as error:
        sys.exit(f"demo: {error}")
    except BundleError as error:
        sys.exit(f"{verb}: {error} Nothing was changed.")
    variables = {
        declared.BUNDLE: str(options.bundle),
        declared.SIGNER: str(options.signer or ""),
        declared.CHECKED: checked.digest,
    }
    # Roles to upgrade come first.
    command = [str(ROOT / "slipway"), verb, *others, "-e", json.dumps(variables)]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
