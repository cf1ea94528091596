"""DeepXDE in a process of its own: it sets torch's default dtype and device for all of it.

`python deepxde_cases.py NAME` prints what a case has found, as JSON.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import twophase


def deepxde(seed=0):
    os.environ["DDE_BACKEND"] = "pytorch"
    import deepxde as dde

    dde.config.set_default_float("float64")
    dde.config.set_random_seed(seed)
    return dde


def burgers(dde):
    """u_t + u u_x = (0.1/π) u_xx with points that are drawn at random, as to be drawn again."""
    area = dde.geometry.GeometryXTime(
        dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1)
    )  # fmt: skip

    def pde(x, u):
        slope = dde.grad.jacobian(u, x, i=0, j=0)
        rest = u * slope - 0.1 / math.pi * dde.grad.hessian(u, x, i=0, j=0)
        return dde.grad.jacobian(u, x, i=0, j=1) + rest

    ends = dde.icbc.DirichletBC(area, lambda x: 0, lambda x, on_boundary: on_boundary)
    start = dde.icbc.IC(
        area, lambda x: -torch.sin(math.pi * torch.as_tensor(x[:, :1])).numpy(),
        lambda x, on_initial: on_initial,
    )  # fmt: skip
    data = dde.data.TimePDE(
        area, pde, [ends, start], num_domain=200, num_boundary=40, num_initial=40,
        train_distribution="pseudo", num_test=500,
    )  # fmt: skip
    return data, dde.nn.FNN([2, 20, 20, 1], "tanh", "Glorot normal")


def resampled():
    """Fresh points every 100 iterations, with metrics at each display."""
    dde = deepxde()
    data, net = burgers(dde)
    optimizer = twophase.TwoPhase(net.parameters())
    model = dde.Model(data, net)
    model.compile(optimizer, verbose=0)
    # with `bc_points` DeepXDE 1.15 at times takes cached values of other points: its cache goes by
    # the address of an array, and the loss jumps by a factor of a thousand
    fresh = dde.callbacks.PDEPointResampler(period=100, pde_points=True, bc_points=False)
    history, _ = model.train(
        iterations=500, display_every=50, callbacks=[fresh], verbose=0
    )  # fmt: skip
    losses = [sum(map(float, parts)) for parts in history.loss_train]
    moves = [epoch for epoch, _, _ in optimizer.loop.moves]
    return {"losses": losses, "moves": moves, "report": optimizer.report(), "steps": history.steps}


def resumed():
    """50 iterations, a checkpoint of DeepXDE's, 70 more; and the same in two processes' worth."""
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for halt in (False, True):
            dde = deepxde()
            data, net = burgers(dde)
            optimizer = twophase.TwoPhase(net.parameters(), switch=30)
            model = dde.Model(data, net)
            model.compile(optimizer, verbose=0)
            model.train(iterations=50, display_every=50, verbose=0)
            if halt:
                path = model.save(str(Path(folder) / "model"), verbose=0)
                dde = deepxde(1)
                net = dde.nn.FNN([2, 20, 20, 1], "tanh", "Glorot normal")
                optimizer = twophase.TwoPhase(net.parameters(), switch=30)
                model = dde.Model(data, net)
                model.compile(optimizer, verbose=0)
                model.restore(path, verbose=0)
            model.train(iterations=70, display_every=70, verbose=0)
            ends.append(torch.nn.utils.parameters_to_vector(net.parameters()).tolist())
            records = [(r.phase, r.train_loss) for r in optimizer.records]
            ends[-1] += [loss for _, loss in records]
    return {"whole": ends[0], "resumed": ends[1]}


def watched():
    """A metric, a checkpoint of the lowest loss and an early stop, as with DeepXDE's own Adam."""
    dde = deepxde()
    interval = dde.geometry.Interval(-1, 1)

    def pde(x, u):
        return -dde.grad.hessian(u, x) - math.pi**2 * torch.sin(math.pi * x)

    ends = dde.icbc.DirichletBC(interval, lambda x: 0, lambda x, on_boundary: on_boundary)
    data = dde.data.PDE(
        interval, pde, ends, num_domain=32, num_boundary=2, num_test=100,
        solution=lambda x: np.sin(math.pi * x),
    )  # fmt: skip
    net = dde.nn.FNN([1, 16, 1], "tanh", "Glorot normal")
    model = dde.Model(data, net)
    model.compile(twophase.TwoPhase(net.parameters()), metrics=["l2 relative error"], verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        saving = dde.callbacks.ModelCheckpoint(f"{folder}/model", save_better_only=True, period=20)
        stop = dde.callbacks.EarlyStopping(patience=300)
        history, _ = model.train(
            iterations=400, display_every=20, callbacks=[saving, stop], verbose=0
        )  # fmt: skip
        saved = len(list(Path(folder).iterdir()))
    errors = [float(metric[0]) for metric in history.metrics_test]
    return {"errors": errors, "saved": saved, "steps": history.steps}


def scheduled():
    """DeepXDE's decay acts on Adam."""
    dde = deepxde()
    data, net = burgers(dde)
    optimizer = twophase.TwoPhase(net.parameters(), 0.01, switch=50)
    model = dde.Model(data, net)
    model.compile(optimizer, decay=("step", 10, 0.5), verbose=0)
    model.train(iterations=25, display_every=25, verbose=0)
    return {"rate": optimizer.param_groups[0]["lr"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n" + json.dumps(globals()[sys.argv[1]]()))
