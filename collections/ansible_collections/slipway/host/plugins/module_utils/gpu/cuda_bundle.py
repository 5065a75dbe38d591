# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA check packed into one file, which ``python3 FILE`` runs on a host or in a container.

``python3 -m ansible_collections.slipway.host.plugins.module_utils.gpu.cuda_bundle FILE`` writes
the file. The contents are read by the loader of this package, which may itself be a zip archive:
Ansible sends modules so.
"""

from __future__ import annotations

import io
import pkgutil
import sys
import zipfile
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_check,
    cuda_driver,
    cuda_errors,
    cuda_judge,
    cuda_kernels,
    cuda_load,
    cuda_run,
)

PARTS = (cuda_check, cuda_driver, cuda_errors, cuda_judge, cuda_kernels, cuda_load, cuda_run)
# The time of each entry, so that the same sources make the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)
MAIN = "import sys\nfrom {package} import cuda_check\nsys.exit(cuda_check.main(sys.argv[1:]))\n"


def bundle() -> bytes:
    """Return the check as a zip archive that Python runs. Raises OSError if a part is missing."""
    package = cuda_check.__name__.rpartition(".")[0]
    folders = package.split(".")
    # Regular packages: a folder without __init__.py gives way to another installed collection.
    files = {"/".join([*folders[: depth + 1], "__init__.py"]): b"" for depth in range(len(folders))}
    files["__main__.py"] = MAIN.format(package=package).encode()
    for part in PARTS:
        name = part.__name__.rpartition(".")[2]
        content = pkgutil.get_data(package, f"{name}.py")
        if content is None:
            raise OSError(f"The loader of {package} cannot read {name}.py")
        files[f"{'/'.join(folders)}/{name}.py"] = content
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name in sorted(files):
            packed.writestr(zipfile.ZipInfo(name, EPOCH), files[name])
    return archive.getvalue()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(bundle())
