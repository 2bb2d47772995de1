"""The two works that `scripts/bench.sh simulate` gives to every program, for those written in Python.

cnn: 1,000 clients share Fashion-MNIST's 60,000 training images evenly; the zoo's `cnn` (207,178 parameters), one epoch in batches of 20 at rate 0.05.
quadratic: 10,000 clients, client i has ½(x − b)ᵀA(x − b) in 10 dimensions, A diagonal; five full gradient steps at rate 0.1.
"""
import gzip
import math
from pathlib import Path

import numpy as np

CNN = {"clients": 1000, "batch": 20, "lr": .05}
QUADRATIC = {"clients": 10_000, "size": 10, "steps": 5, "lr": .1}
FASHION = Path("/usr/share/datasets/fashion-mnist")


def quadratic(i, clients=QUADRATIC["clients"], size=QUADRATIC["size"]):
    """(diagonal of A, b) of client i; no random numbers."""
    phi = (math.sqrt(5) - 1) / 2
    diagonal = np.array([.5 + math.fmod(phi * (size * i + j + 1), 1) for j in range(size)])
    b = np.array([3 * math.cos(1.1 * (i + 1) + .7 * j) + 2 * (-1) ** j * (2 * i / (clients - 1) - 1) for j in range(size)])
    return diagonal, b


def images(split):
    """(x [n,1,28,28] in [0, 1], y [n]) of "train" or "t10k"."""
    def read(name, offset):
        path = FASHION / name
        data = gzip.open(f"{path}.gz").read() if not path.exists() else path.read_bytes()
        return np.frombuffer(data, np.uint8, offset=offset)
    x = read(f"{split}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return x, read(f"{split}-labels-idx1-ubyte", 8).astype(np.int64)


def shards(count):
    """Positions of each client's images: an even random division."""
    order = np.random.default_rng(0).permutation(60_000)
    return np.array_split(order, count)


def make_net():
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)
            self.fc1, self.fc2 = nn.Linear(32 * 7 * 7, 128), nn.Linear(128, 10)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.conv1(x), 2).relu()
            x = nn.functional.max_pool2d(self.conv2(x), 2).relu()
            return self.fc2(self.fc1(x.flatten(1)).relu())

        # What pfl asks of a model.
        def loss(self, x, y, eval=False):
            return nn.functional.cross_entropy(self(x), y)

        def metrics(self, x, y, eval=False):
            return {}

    torch.manual_seed(1)
    return Net()


def accuracy(net):
    import torch
    x, y = images("t10k")
    with torch.no_grad():
        return float((net(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def quadratic_loss(x):
    total = 0.0
    for i in range(QUADRATIC["clients"]):
        diagonal, b = quadratic(i)
        total += .5 * float(np.sum(diagonal * (x - b) ** 2))
    return total / QUADRATIC["clients"]
