# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cause of a failed build of a kernel module, from the log that DKMS names."""

from __future__ import annotations

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import dkms

LOG = "/var/lib/dkms/nvidia/580.178.04/build/make.log"
OUTPUT = f"""\
Building initial module for 6.8.0-149-generic
Error! Bad return status for module build on kernel: 6.8.0-149-generic (x86_64)
Consult {LOG} for more information.
dpkg: error processing package nvidia-dkms-580-server (--configure):
 installed nvidia-dkms-580-server package post-installation script subprocess returned error 10
"""
# The lines around the cause, shortened, as in public reports.
COMPILER = """\
make[1]: Entering directory '/usr/src/linux-headers-6.8.0-1032-aws'
warning: the compiler differs from the one used to build the kernel
  CC [M]  nvidia/nv.o
cc: error: unrecognized command-line option '-ftrivial-auto-var-init=zero'
make[3]: *** [scripts/Makefile.build:243: nvidia/nv.o] Error 1
make: *** [Makefile:85: modules] Error 2
"""
REAL_TIME = """\
The kernel you are installing for is a PREEMPT_RT kernel!
The NVIDIA driver does not support real-time kernels. If you
*** Failed PREEMPT_RT sanity check. Bailing out! ***
make: *** [Makefile:85: modules] Error 2
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (COMPILER, "cc: error: unrecognized command-line option '-ftrivial-auto-var-init=zero'"),
        (REAL_TIME, "The NVIDIA driver does not support real-time kernels. If you"),
        (
            "  CONFTEST: x\nnvidia/nv-mmap.c:5:10: fatal error: linux/x.h: No such file\nmake: *",
            "nvidia/nv-mmap.c:5:10: fatal error: linux/x.h: No such file",
        ),
        ("/bin/sh: 1: gcc-12: not found\nmake: *** [x] Error 127", "/bin/sh: 1: gcc-12: not found"),
        ("make[1]: *** No rule to make target 'modules'.  Stop.", "No rule to make target"),
        ("  ERROR: Kernel configuration is invalid.", "ERROR: Kernel configuration is invalid"),
        ("  LD [M] nvidia.ko\n", ""),
        ("", ""),
        (f"x: error: {'y' * 999}", "x: error: yyy"),
    ],
)
def test_the_cause_is_found(log: str, cause: str) -> None:
    found = dkms.find_cause(log)
    assert cause in found if cause else not found
    assert len(found) <= dkms.LENGTH


def test_the_error_has_cause_and_log() -> None:
    asked: list[str] = []

    def read(path: str) -> bytes:
        asked.append(path)
        return COMPILER.encode()

    (sentence,) = dkms.explain(OUTPUT + OUTPUT, read)
    assert asked == [LOG]
    assert "unrecognized command-line option" in sentence
    assert sentence.endswith(f"The complete log is {LOG}.")


def test_a_missing_log_is_still_named() -> None:
    (sentence,) = dkms.explain(OUTPUT, lambda _path: None)
    assert sentence == f"The build of a kernel module failed. The complete log is {LOG}."
    assert list(dkms.explain("E: Unable to locate package", lambda _path: None)) == []
    # Only logs of DKMS are read.
    assert list(dkms.explain("Consult /etc/shadow/make.log", lambda _path: b"x")) == []
    assert list(dkms.explain("/var/lib/dkms/../../etc/make.log", lambda _path: b"x")) == []
