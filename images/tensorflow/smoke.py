# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a small network, on the GPU where there is one, and see the run in TensorBoard."""

from __future__ import annotations

import tempfile
from pathlib import Path

import smoke_kit
import tensorflow as tf

LOGS = Path(tempfile.mkdtemp())


def a_network_learns() -> str:
    """A network learns to tell the species of irises."""
    from sklearn.datasets import load_iris

    tf.keras.utils.set_random_seed(0)
    features, species = load_iris(return_X_y=True)
    weights = [
        tf.Variable(tf.random.normal([4, 16], stddev=0.3)),
        tf.Variable(tf.random.normal([16, 3], stddev=0.3)),
    ]
    x, y = tf.constant(features, tf.float32), tf.constant(species)

    @tf.function
    def loss() -> tf.Tensor:
        logits = tf.nn.relu(x @ weights[0]) @ weights[1]
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))

    optimizer = tf.keras.optimizers.Adam(0.05)
    with tf.summary.create_file_writer(str(LOGS)).as_default():
        for epoch in range(100):
            with tf.GradientTape() as tape:
                value = loss()
            optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
            tf.summary.scalar("loss", value, epoch)
    predicted = tf.argmax(tf.nn.relu(x @ weights[0]) @ weights[1], 1)
    accuracy = float(tf.reduce_mean(tf.cast(predicted == tf.cast(y, tf.int64), tf.float32)))
    device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    if accuracy < 0.95:
        raise smoke_kit.SmokeError(f"accuracy {accuracy} after 100 epochs on {device}")
    return f"tensorflow {tf.__version__} on {device}, accuracy {accuracy:.3f}"


def tensorboard_shows_the_run() -> None:
    """TensorBoard shows the run."""
    smoke_kit.tensorboard_shows(LOGS, "loss")


if __name__ == "__main__":
    smoke_kit.main(
        a_network_learns,
        tensorboard_shows_the_run,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
