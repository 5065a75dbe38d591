# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the iris classifier and write it as JSON, or fail when it is not good enough.

Runs in the image's build stage, the only place that has scikit-learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import sklearn
from iris_api.model import Model
from sklearn.datasets import load_iris
from sklearn.linear_model import Perceptron
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

PETAL_LENGTH_AND_WIDTH = [2, 3]
LEAST_ACCURACY = 0.85


def main(output: Path) -> int:
    """Train, check and save. Return the exit status: 0 when the model is fit to be served."""
    iris = load_iris()
    petals = iris.data[:, PETAL_LENGTH_AND_WIDTH]
    train, test, train_species, test_species = train_test_split(
        petals, iris.target, test_size=0.3, random_state=0
    )
    pipeline = make_pipeline(
        StandardScaler(), Perceptron(max_iter=40, eta0=0.1, random_state=0, shuffle=True)
    )
    pipeline.fit(train, train_species)
    accuracy = float(accuracy_score(test_species, pipeline.predict(test)))
    print(f"accuracy: {accuracy:.3f} on {len(test)} held-out samples", flush=True)
    if accuracy < LEAST_ACCURACY:
        print(f"error: accuracy is below {LEAST_ACCURACY}; nothing is saved", file=sys.stderr)
        return 1

    _as_model(pipeline, list(iris.target_names), accuracy).save(output)
    wrong = _disagreements(Model.load(output), pipeline, list(iris.target_names), petals)
    if wrong:
        print(
            f"error: {output} and scikit-learn disagree on {len(wrong)} petals: {wrong[:5]}",
            file=sys.stderr,
        )
        output.unlink()
        return 1
    return 0


def _as_model(pipeline: Pipeline, classes: list[str], accuracy: float) -> Model:
    scaler, perceptron = pipeline[0], pipeline[-1]
    return Model(
        classes=tuple(map(str, classes)),
        coefficients=tuple((float(row[0]), float(row[1])) for row in perceptron.coef_),
        intercepts=tuple(float(number) for number in perceptron.intercept_),
        mean=(float(scaler.mean_[0]), float(scaler.mean_[1])),
        scale=(float(scaler.scale_[0]), float(scaler.scale_[1])),
        accuracy=accuracy,
        scikit_learn=sklearn.__version__,
    )


def _disagreements(
    model: Model, pipeline: Pipeline, classes: list[str], petals: np.ndarray
) -> list[tuple[float, float]]:
    """Return the petals that model and pipeline classify differently: none, or a bug.

    Asked are all samples and a grid of a tenth of a millimetre over 0.1 to 10 cm by 0.1 to 4 cm.
    """
    lengths, widths = np.meshgrid(np.arange(0.1, 10.0, 0.01), np.arange(0.1, 4.0, 0.01))
    everything = np.vstack([petals, np.column_stack([lengths.ravel(), widths.ravel()])])
    expected = pipeline.predict(everything)
    print(f"checking the saved model on {len(everything)} petals", flush=True)
    return [
        (float(length), float(width))
        for (length, width), species in zip(everything, expected, strict=True)
        if model.predict(float(length), float(width)) != classes[species]
    ]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
