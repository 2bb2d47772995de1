"""One of the works (work.py) in pfl-research's simulation. usage: with_pfl.py cnn|quadratic COHORT ROUNDS [--threads N]

Prints one JSON line; time from the end of the first round to the end of the last. One process (pfl trains a cohort's users in turn), LibTorch
with N threads. Reading the data is not counted; datasets of users are made once and kept.
"""
import json
import sys
import time

import numpy as np
import torch

import work

from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import set_framework_module
set_framework_module(pytorch_ops)
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.pytorch import PyTorchTensorDataset  # noqa: E402
from pfl.data.sampling import get_user_sampler  # noqa: E402
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402

CPU = torch.device("cpu")


class Point(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(size))

    def loss(self, diagonal, b, eval=False):
        return .5 * (diagonal * (self.x - b) ** 2).sum()

    def metrics(self, diagonal, b, eval=False):
        return {}


class Clock(TrainingProcessCallback):
    def __init__(self):
        self.times = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append(time.time())
        return False, Metrics()


def main():
    what, cohort, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(int(sys.argv[sys.argv.index("--threads") + 1]) if "--threads" in sys.argv else 1)
    if what == "cnn":
        x, y = (torch.from_numpy(a) for a in work.images("train"))
        users = [PyTorchTensorDataset((x[shard], y[shard]), user_id=str(i)) for i, shard in enumerate(work.shards(work.CNN["clients"]))]
        module, local = work.make_net(), {"local_num_epochs": 1, "local_learning_rate": work.CNN["lr"], "local_batch_size": work.CNN["batch"]}
    else:
        users = [PyTorchTensorDataset(tuple(torch.from_numpy(v[None].astype(np.float32)) for v in work.quadratic(i)), user_id=str(i))
                 for i in range(work.QUADRATIC["clients"])]
        module = Point(work.QUADRATIC["size"])
        local = {"local_num_epochs": work.QUADRATIC["steps"], "local_learning_rate": work.QUADRATIC["lr"], "local_batch_size": 1}
    data = FederatedDataset(lambda i: users[int(i)], get_user_sampler("random", list(range(len(users)))))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(central_num_iterations=rounds + 1, evaluation_frequency=10**9, train_cohort_size=cohort, val_cohort_size=0),
        backend=SimulatedBackend(training_data=data, val_data=data), model=model, model_train_params=NNTrainHyperParams(**local),
        model_eval_params=NNEvalHyperParams(local_batch_size=100), callbacks=[clock])
    seconds = clock.times[-1] - clock.times[0]
    reached = {"accuracy": work.accuracy(module)} if what == "cnn" else {"loss": work.quadratic_loss(module.x.detach().numpy().astype(float))}
    print(json.dumps({"program": "pfl", "work": what, "clients_per_s": cohort * rounds / seconds, "seconds": seconds, "threads": torch.get_num_threads(),
                      **reached}))


if __name__ == "__main__":
    main()
