# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train a small network with JAX, on the GPU where there is one."""

from __future__ import annotations

import smoke_kit


def a_network_learns() -> str:
    """A network learns to tell the species of irises, in a compiled step."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen
    from sklearn.datasets import load_iris

    features, species = (jnp.asarray(array) for array in load_iris(return_X_y=True))
    model = linen.Sequential([linen.Dense(16), linen.relu, linen.Dense(3)])
    weights = model.init(jax.random.key(0), features)
    optimizer = optax.adam(0.05)

    def loss(weights: object) -> jax.Array:
        logits = model.apply(weights, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, species).mean()

    @jax.jit
    def step(weights: object, state: object) -> tuple[object, object]:
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(100):
        weights, state = step(weights, state)
    accuracy = float((model.apply(weights, features).argmax(1) == species).mean())
    platform = jax.devices()[0].platform
    if accuracy < 0.95:
        raise smoke_kit.SmokeError(f"accuracy {accuracy} after 100 steps on {platform}")
    return f"jax {jax.__version__} on {platform}, accuracy {accuracy:.3f}"


if __name__ == "__main__":
    smoke_kit.main(
        a_network_learns,
        smoke_kit.python_notebook_runs,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
