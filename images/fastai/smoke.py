# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let fastai learn a table and pictures, and start Jupyter as the course does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

import smoke_kit


def a_table_is_learnt() -> str:
    """fastai learns a table."""
    import fastai
    from fastai.tabular.all import (
        CategoryBlock,
        Normalize,
        TabularDataLoaders,
        accuracy,
        set_seed,
        tabular_learner,
    )
    from sklearn.datasets import load_iris

    set_seed(0, reproducible=True)
    table = load_iris(as_frame=True).frame
    loaders = TabularDataLoaders.from_df(
        table.astype("float32").sample(frac=1, random_state=0).reset_index(drop=True),
        procs=[Normalize],
        cont_names=list(table.columns[:4]),
        y_names="target",
        y_block=CategoryBlock(),
        bs=32,
    )
    learner = tabular_learner(loaders, layers=[32], metrics=accuracy)
    with learner.no_bar(), learner.no_logging():
        learner.fit(15, lr=0.02)
    found = float(learner.validate()[1])
    if found < 0.8:
        raise smoke_kit.SmokeError(f"accuracy {found} after 15 epochs")
    return f"fastai {fastai.__version__}, accuracy {found:.3f}"


def pictures_are_learnt() -> str:
    """fastai loads pictures and trains a network on them."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not in this image: its wheels for CPUs were not at hand"
    import numpy as np
    from fastai.vision.all import ImageDataLoaders, resnet18, vision_learner
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    for index in range(24):
        picture = np.full((32, 32, 3), 255 if index % 2 else 0, np.uint8)
        (folder / f"{'light' if index % 2 else 'dark'}_{index}.png").touch()
        Image.fromarray(picture).save(folder / f"{'light' if index % 2 else 'dark'}_{index}.png")
    loaders = ImageDataLoaders.from_name_re(
        folder, sorted(folder.glob("*.png")), r"([a-z]+)_\d+", bs=4, num_workers=0
    )
    learner = vision_learner(loaders, resnet18, pretrained=False)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    return f"kinds {', '.join(loaders.vocab)}"


def the_course_starts_jupyter() -> None:
    """j9 starts Jupyter for the second GPU on port 8889; the long name is the same."""
    long_name = "/usr/local/bin/jupyter_notebook_GPU_1_PORT_8889"
    smoke_kit.expect(
        "the long name", Path(long_name).resolve(), Path("/usr/local/bin/j9").resolve()
    )
    url = "http://127.0.0.1:8889"
    with smoke_kit.server(["j9"], f"{url}/api") as log:
        smoke_kit.expect("a token is printed", "8889/lab?token=" in log.read_text(), True)
        smoke_kit.expect("status without it", smoke_kit.get(f"{url}/api/status")[0], 403)


def an_unpublished_port_is_told() -> None:
    """j9 says how to start the container where its port is not published."""
    for published, told in (({}, True), ({"SLIPWAY_PORT_GPU_1": "8889"}, False)):
        done = subprocess.run(
            ["j9", "--version"],
            env={**os.environ, "SLIPWAY_PORT_JUPYTER": "8888", **published},
            capture_output=True,
            text=True,
            check=True,
        )
        smoke_kit.expect("the hint", "fastai --port gpu-1=8889" in done.stderr, told)


def folders_are_there() -> None:
    """The folders for code and data are there, and anybody's."""
    for folder in ("/code", "/data"):
        smoke_kit.expect(f"mode of {folder}", oct(Path(folder).stat().st_mode & 0o7777), "0o1777")


if __name__ == "__main__":
    smoke_kit.main(
        a_table_is_learnt,
        pictures_are_learnt,
        folders_are_there,
        the_course_starts_jupyter,
        an_unpublished_port_is_told,
        smoke_kit.python_notebook_runs,
    )
