# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trained classifier as plain numbers.

A linear classifier behind a standard scaler is eighteen numbers, so the model is kept as JSON:
loading it executes no code (a pickle does), and predicting needs neither NumPy nor scikit-learn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    """A one-vs-rest linear classifier of standardised (length, width) pairs in centimetres."""

    classes: tuple[str, ...]
    """Names of the classes, one per row of `coefficients`."""
    coefficients: tuple[tuple[float, float], ...]
    """One weight per standardised feature for each class."""
    intercepts: tuple[float, ...]
    """One bias for each class."""
    mean: tuple[float, float]
    """What the scaler subtracts from length and width, in cm."""
    scale: tuple[float, float]
    """What the scaler divides by, in cm."""
    accuracy: float
    """Share of the held-out samples that the classifier got right, 0 to 1."""
    scikit_learn: str
    """Version of scikit-learn that trained it."""

    def predict(self, length: float, width: float) -> str:
        """Return the class of a petal of that length and width in cm.

        The largest score wins, the first of equals, as in scikit-learn's LinearClassifierMixin.
        """
        x = (length - self.mean[0]) / self.scale[0]
        y = (width - self.mean[1]) / self.scale[1]
        scores = [
            x * weight_x + y * weight_y + intercept
            for (weight_x, weight_y), intercept in zip(
                self.coefficients, self.intercepts, strict=True
            )
        ]
        return self.classes[scores.index(max(scores))]

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read a model that `save` wrote. Raise ValueError when its shape is not a model's."""
        document = json.loads(path.read_text(encoding="utf-8"))
        try:
            model = cls(
                classes=tuple(str(name) for name in document["classes"]),
                coefficients=tuple(_pair(row) for row in document["coefficients"]),
                intercepts=tuple(float(number) for number in document["intercepts"]),
                mean=_pair(document["mean"]),
                scale=_pair(document["scale"]),
                accuracy=float(document["accuracy"]),
                scikit_learn=str(document["scikit_learn"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no iris model: {error!r}") from error
        if not len(model.classes) == len(model.coefficients) == len(model.intercepts) > 0:
            raise ValueError(
                f"{path} holds no iris model: {len(model.classes)} classes, "
                f"{len(model.coefficients)} rows of coefficients, "
                f"{len(model.intercepts)} intercepts; these numbers must be equal"
            )
        return model

    def save(self, path: Path) -> None:
        """Write the model as JSON. Python's floats survive the round trip exactly."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _pair(values: Any) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)
