# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a model, save it, load it again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
import smoke_kit


def a_model_learns_and_is_kept() -> str:
    """A model learns to tell the species of irises, and is the same after a file."""
    from sklearn.datasets import load_iris

    keras.utils.set_random_seed(0)
    features, species = load_iris(return_X_y=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    )
    model.compile(
        keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = model.fit(features, species, epochs=30, verbose=0)
    accuracy = history.history["accuracy"][-1]
    if accuracy < 0.9:
        raise smoke_kit.SmokeError(f"accuracy {accuracy} after 30 epochs")
    file = Path(tempfile.mkdtemp()) / "model.keras"
    model.save(file)
    again = keras.models.load_model(file)
    same = np.allclose(model.predict(features, verbose=0), again.predict(features, verbose=0))
    smoke_kit.expect("the loaded model predicts the same", same, True)
    return f"keras {keras.__version__} on {keras.backend.backend()}, accuracy {accuracy:.3f}"


if __name__ == "__main__":
    smoke_kit.main(
        a_model_learns_and_is_kept,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
