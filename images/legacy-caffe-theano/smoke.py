# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a Caffe net, a Theano function, a Lasagne network and a Keras 2 model.

For the Python 3.9 of Debian 11.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RNG = np.random.RandomState(0)
# Two clouds of points that a line tells apart.
POINTS = np.concatenate([RNG.normal(-1, 0.3, (64, 2)), RNG.normal(1, 0.3, (64, 2))])
POINTS = POINTS.astype("float32")
KINDS = np.repeat([0, 1], 64).astype("int32")

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 128 dim: 2 } } }
layer { name: "kind" type: "Input" top: "kind" input_param { shape { dim: 128 } } }
layer { name: "line" type: "InnerProduct" bottom: "data" top: "line"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "line" bottom: "kind" top: "loss" }
"""
SOLVER = 'net: "%s" base_lr: 0.5 lr_policy: "fixed" max_iter: 50 solver_mode: CPU snapshot: 0 '


class SmokeError(Exception):
    """The image does not do its job."""


def accurate(kinds):
    """Return the accuracy in words; raise SmokeError where it is not perfect enough."""
    accuracy = float((np.asarray(kinds) == KINDS).mean())
    if accuracy < 0.95:
        raise SmokeError(f"accuracy {accuracy}, wanted 0.95 or more")
    return f"accuracy {accuracy:.3f}"


def caffe_net_learns():
    """A Caffe net learns to tell two clouds of points apart."""
    import caffe

    folder = Path(tempfile.mkdtemp())
    (folder / "net").write_text(NET)
    (folder / "solver").write_text(SOLVER % (folder / "net"))
    caffe.set_mode_cpu()
    solver = caffe.SGDSolver(str(folder / "solver"))
    solver.net.blobs["data"].data[...] = POINTS
    solver.net.blobs["kind"].data[...] = KINDS
    solver.step(50)
    solver.net.forward()
    said = accurate(solver.net.blobs["line"].data.argmax(1))
    return f"caffe {caffe.__version__}, {said}"


def theano_differentiates():
    """Theano differentiates and compiles a function."""
    import theano

    x = theano.tensor.dscalar("x")
    slope = float(theano.function([x], theano.grad(x**2, x))(3.0))
    if slope != 6.0:
        raise SmokeError(f"the slope at 3 is {slope}, not 6")
    return f"theano {theano.__version__}"


def lasagne_network_learns():
    """A Lasagne network with pooling learns to tell two clouds of points apart."""
    import lasagne
    import theano

    x, y = theano.tensor.tensor4("x"), theano.tensor.ivector("y")
    layer = lasagne.layers.InputLayer((None, 1, 2, 2), x)
    layer = lasagne.layers.MaxPool2DLayer(layer, (2, 1))
    layer = lasagne.layers.DenseLayer(layer, 2, nonlinearity=lasagne.nonlinearities.softmax)
    predicted = lasagne.layers.get_output(layer)
    loss = lasagne.objectives.categorical_crossentropy(predicted, y).mean()
    weights = lasagne.layers.get_all_params(layer, trainable=True)
    step = theano.function([x, y], loss, updates=lasagne.updates.adam(loss, weights, 0.1))
    # Each point twice below itself, so that pooling gives it back.
    pictures = np.stack([POINTS, POINTS], axis=1)[:, None].astype(theano.config.floatX)
    for _ in range(60):
        step(pictures, KINDS)
    said = accurate(theano.function([x], predicted.argmax(1))(pictures))
    return f"lasagne {lasagne.__version__}, {said}"


def keras_model_learns():
    """A Keras 2 model on Theano learns to tell two clouds of points apart."""
    import keras

    model = keras.models.Sequential([keras.layers.Dense(2, activation="softmax", input_shape=(2,))])
    model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    model.fit(POINTS, KINDS, epochs=20, verbose=0)
    said = accurate(model.predict(POINTS).argmax(1))
    return f"keras {keras.__version__} on {keras.backend.backend()}, {said}"


def main():
    """Run the steps in order; exit 1 at the first that fails."""
    steps = (caffe_net_learns, theano_differentiates, lasagne_network_learns, keras_model_learns)
    for step in steps:
        began = time.monotonic()
        said = step()
        title = step.__doc__.rstrip(".")
        print(f"smoke: {time.monotonic() - began:5.1f} s  {title} ({said})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
