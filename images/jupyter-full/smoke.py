# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Convert a notebook with a formula and an SVG image to PDF, and compile Cython."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import smoke_kit

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>'
SETUP = """
from Cython.Build import cythonize
from setuptools import setup

setup(ext_modules=cythonize("fast.pyx"))
"""


def run(*command: str) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise smoke_kit.SmokeError(f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def a_notebook_becomes_a_pdf() -> str:
    """A notebook with a formula and an SVG image becomes a PDF."""
    import nbformat

    image = nbformat.v4.new_output("display_data", {"image/svg+xml": SVG})
    cells = [
        nbformat.v4.new_markdown_cell("# Energy\n$E = mc^2$"),
        nbformat.v4.new_code_cell("draw()", outputs=[image]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "page.ipynb")
    run("jupyter", "nbconvert", "--to", "pdf", "page.ipynb")
    content = Path("page.pdf").read_bytes()
    smoke_kit.expect("the kind of the file", content[:5], b"%PDF-")
    return f"{len(content)} bytes"


def pandoc_converts() -> None:
    """Pandoc converts Markdown to HTML."""
    Path("page.md").write_text("**BOLD**", encoding="utf-8")
    smoke_kit.expect("HTML", run("pandoc", "page.md"), "<p><strong>BOLD</strong></p>\n")


def cython_is_compiled() -> None:
    """A module in Cython is compiled and imported."""
    Path("fast.pyx").write_text("def double(int number):\n    return 2 * number\n")
    Path("setup.py").write_text(SETUP)
    run(sys.executable, "setup.py", "build_ext", "--inplace")
    said = run(sys.executable, "-c", "import fast; print(fast.double(21))")
    smoke_kit.expect("the result", said, "42\n")


if __name__ == "__main__":
    smoke_kit.main(a_notebook_becomes_a_pdf, pandoc_converts, cython_is_compiled)
