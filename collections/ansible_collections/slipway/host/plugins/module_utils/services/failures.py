# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of single services: the others are still applied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ServiceFailure(Exception):
    """A service cannot be as declared; the text says why.

    logs: the last lines that its containers printed.
    """

    def __init__(self, message: str, logs: str = "") -> None:
        super().__init__(message)
        self.logs = logs


@contextmanager
def collected(failures: list[ServiceFailure], name: str) -> Iterator[None]:
    """Add a failure of the service NAME to the list, and continue after the block."""
    try:
        yield
    except ServiceFailure as error:
        failures.append(error)
    except (OSError, LookupError, ValueError) as error:
        failures.append(ServiceFailure(f"service {name}: {error}"))
