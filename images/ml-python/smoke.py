# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let every framework learn something small."""

from __future__ import annotations

import platform

import numpy as np
import smoke_kit
from sklearn.datasets import load_iris

FEATURES, SPECIES = load_iris(return_X_y=True)


def accurate(what: str, predicted: object, least: float = 0.9) -> str:
    """Return the accuracy on the irises in words; raise SmokeError where it is below `least`."""
    accuracy = float((np.asarray(predicted) == SPECIES).mean())
    if accuracy < least:
        raise smoke_kit.SmokeError(f"{what}: accuracy {accuracy}, wanted {least} or more")
    return f"{what}, accuracy {accuracy:.3f}"


def torch_learns() -> str:
    """PyTorch trains a network."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(FEATURES, dtype=torch.float32, device=device)
    y = torch.tensor(SPECIES, device=device)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).to(
        device
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return accurate(f"torch {torch.__version__} on {device}", model(x).argmax(1).cpu())


def keras_learns() -> str:
    """Keras trains a model."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(FEATURES, SPECIES, epochs=30, verbose=0)
    predicted = model.predict(FEATURES, verbose=0).argmax(1)
    return accurate(f"keras {keras.__version__} on {keras.backend.backend()}", predicted)


def tensorflow_learns() -> str:
    """TensorFlow finds a line by its gradient."""
    import tensorflow as tf

    x = tf.linspace(0.0, 1.0, 64)
    slope = tf.Variable(0.0)
    for _ in range(200):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((slope * x - 3 * x) ** 2)
        slope.assign_sub(tape.gradient(loss, slope))
    smoke_kit.expect("the slope", round(float(slope), 1), 3.0)
    return f"tensorflow {tf.__version__}"


def xgboost_learns() -> str:
    """XGBoost grows trees."""
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=20, max_depth=3).fit(FEATURES, SPECIES)
    return accurate(f"xgboost {xgboost.__version__}", model.predict(FEATURES))


def pymc_samples() -> str:
    """PyMC samples the mean of a normal distribution."""
    import pymc

    data = np.random.default_rng(0).normal(5.0, 1.0, 200)
    with pymc.Model():
        mean = pymc.Normal("mean", 0, 10)
        pymc.Normal("seen", mean, 1, observed=data)
        trace = pymc.sample(200, tune=200, chains=1, cores=1, random_seed=1, progressbar=False)
    found = float(trace["posterior"]["mean"].mean())
    smoke_kit.expect("the mean is close", abs(found - data.mean()) < 0.1, True)
    return f"pymc {pymc.__version__}"


def pystan_samples() -> str:
    """PyStan, which has wheels for x86_64 only, compiles a model and samples."""
    import stan

    program = """
    data { int<lower=0> n; vector[n] seen; }
    parameters { real mean; }
    model { seen ~ normal(mean, 1); }
    """
    data = np.random.default_rng(0).normal(5.0, 1.0, 200)
    model = stan.build(program, data={"n": 200, "seen": data.tolist()}, random_seed=1)
    fit = model.sample(num_chains=1, num_samples=200, num_warmup=200)
    smoke_kit.expect("the mean is close", abs(fit["mean"].mean() - data.mean()) < 0.1, True)
    return ""


def words_are_placed() -> str:
    """Gensim places words that go together close to each other; NLTK finds their stems."""
    import gensim
    import nltk

    pets, tools = ["cat", "dog", "pet"], ["saw", "nail", "hammer"]
    rng = np.random.default_rng(0)
    sentences = [list(rng.permutation(words)) for words in (pets, tools) * 300]
    model = gensim.models.Word2Vec(sentences, vector_size=16, min_count=1, seed=1, workers=1)
    closer = model.wv.similarity("cat", "dog") > model.wv.similarity("cat", "hammer")
    smoke_kit.expect("cat is closer to dog than to hammer", bool(closer), True)
    smoke_kit.expect("the stem", nltk.PorterStemmer().stem("slipways"), "slipway")
    return f"gensim {gensim.__version__}, nltk {nltk.__version__}"


def opencv_sees() -> str:
    """OpenCV writes, reads and measures a picture."""
    import cv2

    picture = np.zeros((64, 64, 3), np.uint8)
    cv2.circle(picture, (32, 32), 10, (255, 255, 255), -1)
    written, encoded = cv2.imencode(".png", picture)
    smoke_kit.expect("written", written, True)
    grey = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)
    outlines, _ = cv2.findContours(grey, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    smoke_kit.expect("circles found", len(outlines), 1)
    return f"opencv {cv2.__version__}"


def cython_compiles() -> str:
    """Cython compiles a cell of a notebook."""
    import Cython

    source = "%load_ext Cython\n"
    cell = "get_ipython().run_cell_magic('cython', '', 'def twice(int n): return 2 * n')\n"
    smoke_kit.expect(
        "twice 21", smoke_kit.notebook("python3", f"{source}{cell}print(twice(21))"), "42\n"
    )
    return f"cython {Cython.__version__}"


if __name__ == "__main__":
    smoke_kit.main(
        torch_learns,
        keras_learns,
        tensorflow_learns,
        xgboost_learns,
        pymc_samples,
        *([pystan_samples] if platform.machine() == "x86_64" else []),
        words_are_placed,
        opencv_sees,
        cython_compiles,
        smoke_kit.jupyter_lets_in_by_token_alone,
    )
