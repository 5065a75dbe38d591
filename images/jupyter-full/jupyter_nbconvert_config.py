# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conversion of notebooks to PDF: rsvg-convert converts SVG images, because Inkscape is 500 MB."""

from __future__ import annotations

from traitlets.config import get_config

c = get_config()
c.SVG2PDFPreprocessor.command = [
    *("rsvg-convert", "--format=pdf", "--output={to_filename}", "{from_filename}"),
]
