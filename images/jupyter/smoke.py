# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fit a model on a table, draw it, and use Jupyter as a person would."""

from __future__ import annotations

import tempfile
from pathlib import Path

import smoke_kit


def a_table_is_fitted_and_drawn() -> str:
    """The scientific stack fits and draws a table."""
    import matplotlib

    matplotlib.use("agg")
    import pandas
    import seaborn
    from scipy import stats
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    table: pandas.DataFrame = load_iris(as_frame=True).frame
    model = LogisticRegression(max_iter=500).fit(table.drop(columns="target"), table["target"])
    accuracy = model.score(table.drop(columns="target"), table["target"])
    correlation = stats.pearsonr(table["petal length (cm)"], table["petal width (cm)"])
    if accuracy < 0.95 or correlation.statistic < 0.9:
        raise smoke_kit.SmokeError(f"accuracy {accuracy}, correlation {correlation.statistic}")
    figure = Path(tempfile.mkdtemp()) / "figure.png"
    seaborn.scatterplot(table, x="petal length (cm)", y="petal width (cm)").figure.savefig(figure)
    smoke_kit.expect("the drawing's kind", figure.read_bytes()[:4], b"\x89PNG")
    return f"accuracy {accuracy:.3f}"


if __name__ == "__main__":
    smoke_kit.main(
        a_table_is_fitted_and_drawn,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
