"""The robust optimizers' formulas in NumPy float64, written apart from the library, and golden numbers.

    python scripts/golden_optimizers.py      # rewrites tests/optimizers/golden.json

One class per method, one tensor per object: `step(gradient)` returns the new weights. Slow, obvious, without
options that the formulas do not need. Tests compare the library with these classes and the stored numbers.

Legend: W weights, A anchor, c = W − A, g gradient, t the tensor's own step from 1, d base step (W ← W − d).
"""

import json
import math
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "tests" / "optimizers" / "golden.json"


class Adam:
    """Adam with decay decoupled from the moments (AdamW); `d` is the whole step."""

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
        self.lr, (self.b1, self.b2), self.eps = lr, betas, eps
        self.weight_decay, self.amsgrad = weight_decay, amsgrad
        self.t, self.m, self.v, self.vmax = 0, 0.0, 0.0, 0.0

    def d(self, W, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        self.vmax = np.maximum(self.vmax, self.v)
        v = self.vmax if self.amsgrad else self.v
        direction = (self.m / (1 - self.b1**self.t)) / (np.sqrt(v / (1 - self.b2**self.t)) + self.eps)
        return self.lr * direction + self.lr * self.weight_decay * W


class Sgd:
    """SGD with momentum, Nesterov and coupled decay; the first buffer is the gradient, without dampening."""

    def __init__(self, lr, momentum=0.0, nesterov=False, dampening=0.0, weight_decay=0.0):
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.dampening, self.weight_decay, self.buffer = dampening, weight_decay, None

    def d(self, W, g):
        g = g + self.weight_decay * W
        if self.momentum == 0:
            return self.lr * g
        if self.buffer is None:
            self.buffer = g.copy()
        else:
            self.buffer = self.momentum * self.buffer + (1 - self.dampening) * g
        return self.lr * (g + self.momentum * self.buffer if self.nesterov else self.buffer)


def as_rows(x):
    """[rows, entries of a row]; a vector or a scalar is one row."""
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(len(x), -1)


def mars(x):
    """Sum of absolute values of every row."""
    return np.abs(as_rows(x)).sum(1)


def per_row(x, factor):
    return (as_rows(x) * factor[:, None]).reshape(x.shape)


class ScalarAdam:
    """Adam on one number that is learned beside the weights."""

    def __init__(self, lr):
        self.lr, self.m, self.v = lr, 0.0, 0.0

    def move(self, h, exponent):
        self.m = 0.9 * self.m + 0.1 * h
        self.v = 0.999 * self.v + 0.001 * h * h
        return self.lr * (self.m / (1 - 0.9**exponent)) / (math.sqrt(self.v / (1 - 0.999**exponent)) + 1e-8)


class FTP:
    """exponent: "t" (published code) or "t-1" (as many updates as there were); first: "zero" or "start"."""

    def __init__(self, W, A, base, k=1.0, radius_lr=1e-2, exponent="t", first="start"):
        self.W, self.A, self.base, self.k = W.copy(), A, base, k
        self.adam, self.exponent, self.first, self.t = ScalarAdam(radius_lr), exponent, first, 0
        self.c = self.n = None

    def step(self, g):
        self.t += 1
        start = mars(self.W - self.A) + 1e-8
        u = self.W - self.base.d(self.W, g)
        c = u - self.A
        n = mars(c) + 1e-8
        if self.t == 1:
            self.gamma = 1e-8 if self.first == "zero" else start.max()
        else:
            h = ((as_rows(g) * as_rows(self.c)).sum(1) / self.n).sum()
            h = self.k * h if h > 0 else h
            self.gamma -= self.adam.move(h, self.t if self.exponent == "t" else self.t - 1)
        self.gamma = float(np.clip(self.gamma, 1e-8, n.max()))
        self.W = self.A + per_row(c, np.clip(self.gamma / n, 0, 1))
        self.c, self.n = c, n
        return self.W


class SPD:
    def __init__(self, W, A, base, strength=1.0):
        self.W, self.A, self.base, self.strength, self.ratio = W.copy(), A, base, strength, 0.0

    def step(self, g):
        q = -(g * (self.W - self.A)).sum()
        radius = np.linalg.norm(self.W - self.A)
        new = self.W - self.base.d(self.W, g)
        self.ratio = 0.0
        if q < 0:
            new_radius = np.linalg.norm(new - self.A)
            self.ratio = float(np.clip((new_radius - radius) / new_radius, 0, 1)) if new_radius > 0 else 0.0
        self.W = new - self.strength * self.ratio * (new - self.A)
        return self.W


class DiGraP:
    """condition: project where <g,c> < 0 ("conflict") or > 0; normalization: "rows" or "tensor"."""

    def __init__(self, W, A, base, mu, kappa=1.0, condition="conflict", normalization="rows", exponent="t"):
        self.W, self.A, self.base, self.kappa = W.copy(), A, base, kappa
        self.condition, self.normalization, self.exponent = condition, normalization, exponent
        self.adam, self.omega, self.t, self.proj = ScalarAdam(mu), 0.0, 0, None

    def step(self, g):
        self.t += 1
        c = self.W - self.A
        dot, square = (g * c).sum(), (c * c).sum()
        if self.t > 1:
            flat = (lambda x: x.reshape(1, -1)) if self.normalization == "tensor" else as_rows
            G, P = flat(g), flat(self.proj)
            unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (G, P)]
            move = self.adam.move((unit[0] * unit[1]).sum(), self.t if self.exponent == "t" else self.t - 1)
            self.omega = float(np.clip(self.omega - move, 0, self.kappa))
        self.proj = dot / (square + 1e-8) * c
        if (dot < 0) if self.condition == "conflict" else (dot > 0):
            g = g - self.omega * dot / square * c
        self.W = self.W - self.base.d(self.W, g)
        return self.W


class L2SP:
    """alpha/2 ‖W − A‖² in the loss, or (decoupled) W ← W − lr·alpha·(W − A) before the step."""

    def __init__(self, W, A, base, alpha, decoupled=False):
        self.W, self.A, self.base, self.alpha, self.decoupled = W.copy(), A, base, alpha, decoupled

    def step(self, g):
        pull = self.alpha * (self.W - self.A)
        if self.decoupled:
            self.W = self.W - self.base.lr * pull - self.base.d(self.W, g)
        else:
            self.W = self.W - self.base.d(self.W, g + pull)
        return self.W


class MARSSP:
    """strength · max_r ‖(W − A)_r‖₁ in the loss (subgradient on that row), or rows clipped to a radius."""

    def __init__(self, W, A, base, strength=None, radius=None):
        self.W, self.A, self.base, self.strength, self.radius = W.copy(), A, base, strength, radius

    def step(self, g):
        c = self.W - self.A
        if self.radius is None:
            largest = np.zeros(len(as_rows(c)))
            largest[mars(c).argmax()] = 1.0
            g = g + self.strength * per_row(np.sign(c), largest)
        self.W = self.W - self.base.d(self.W, g)
        if self.radius is not None:
            c = self.W - self.A
            n = mars(c)
            self.W = self.A + per_row(c, np.minimum(1.0, self.radius / np.where(n > 0, n, 1.0)))
        return self.W


class TPGM:
    """Base step; `learn(gradient_of)` moves the radius by gradients at projected weights; then `project`."""

    def __init__(self, W, A, base, norm="mars", radius_lr=1e-2):
        self.W, self.A, self.base, self.norm = W.copy(), A, base, norm
        self.adam, self.gamma, self.updates = ScalarAdam(radius_lr), None, 0

    def step(self, g):
        self.W = self.W - self.base.d(self.W, g)
        return self.W

    def rows(self, x):
        return x.reshape(1, -1) if self.norm == "l2" else as_rows(x)

    def norms(self):
        c = self.rows(self.W - self.A)
        return np.linalg.norm(c, axis=1) if self.norm == "l2" else np.abs(c).sum(1)

    def projected(self):
        n = self.norms()
        if self.gamma is None:
            self.gamma = n.min() / 2
        self.gamma = float(np.clip(self.gamma, 1e-8, n.max()))
        ratio = np.clip(self.gamma / (n + 1e-8), 0, 1)
        return self.A + (self.rows(self.W - self.A) * ratio[:, None]).reshape(self.W.shape)

    def learn(self, gradient_of, iterations=1):
        for _ in range(iterations):
            G, n = self.rows(gradient_of(self.projected())), self.norms() + 1e-8
            inside = self.gamma / n <= 1
            h = ((G * self.rows(self.W - self.A)).sum(1) / n * inside).sum()
            self.updates += 1
            self.gamma -= self.adam.move(h, self.updates)

    def project(self):
        self.W = self.projected()
        return self.W


CASES = {
    "ftp": (FTP, {}),
    "ftp k=0": (FTP, {"k": 0.0}),
    "ftp exact": (FTP, {"exponent": "t-1"}),
    "spd": (SPD, {"strength": 1.0}),
    "spd 1.5": (SPD, {"strength": 1.5}),
    "digrap": (DiGraP, {"mu": 0.5}),
    "digrap agreement": (DiGraP, {"mu": 0.5, "condition": "agreement"}),
    "digrap tensor": (DiGraP, {"mu": 0.5, "normalization": "tensor"}),
    "l2sp": (L2SP, {"alpha": 0.3}),
    "l2sp decoupled": (L2SP, {"alpha": 0.3, "decoupled": True}),
    "marssp": (MARSSP, {"strength": 0.3}),
    "marssp radius": (MARSSP, {"radius": 0.25}),
}
W = np.array([[1.0, -2.0], [0.5, 3.0]])
GRADIENTS = [np.array([[0.1, -0.2], [0.3, 0.05]]), np.array([[-0.02, 0.03], [-0.05, -0.01]])]
PATTERN = [0, 0, 1, 1, 0, 1, 0, 0]
BASES = {
    "adamw": lambda: Adam(0.1),
    "sgd": lambda: Sgd(0.1, momentum=0.9, nesterov=True),
}


def golden():
    """Weights after every step of the pattern, and the number that is learned or computed beside them."""
    traces = {}
    for name, (method, options) in CASES.items():
        for base, make in BASES.items():
            run = method(W, W, make(), **options)
            weights = [run.step(GRADIENTS[which]).ravel().tolist() for which in PATTERN]
            traces[f"{name} {base}"] = {"weights": weights}
    for norm in ("mars", "l2"):
        run, radii, weights = TPGM(W, W, Adam(0.1), norm=norm), [], []
        for which in PATTERN:
            run.step(GRADIENTS[which])
            run.learn(lambda projected: projected - 1.0, iterations=2)  # held-out loss ‖W − 1‖²/2
            weights.append(run.project().ravel().tolist())
            radii.append(float(run.gamma))
        traces[f"tpgm {norm}"] = {"weights": weights, "radii": radii}
    return traces


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
