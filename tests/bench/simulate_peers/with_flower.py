"""One of the works (work.py) in Flower's simulation (run_simulation, Ray). usage: with_flower.py cnn|quadratic COHORT ROUNDS

Prints one JSON line; time from the end of the first round to the end of the last. An actor a core; FedAvg without evaluation.
"""
import json
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import flower_client
import work

WHAT, COHORT, ROUNDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CLIENTS = (work.CNN if WHAT == "cnn" else work.QUADRATIC)["clients"]
app = ServerApp()
seen = {"times": [], "missing": 0}


class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        seen["missing"] += COHORT - sum(not r.has_error() for r in replies)
        result = super().aggregate_train(server_round, replies)
        seen["times"].append(time.time())
        seen["arrays"] = result[0]
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    initial = ArrayRecord(work.make_net().state_dict()) if WHAT == "cnn" else ArrayRecord([np.zeros(work.QUADRATIC["size"])])
    strategy = Timed(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0, min_train_nodes=COHORT, min_available_nodes=CLIENTS)
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS + 1)


def reached():
    if WHAT == "quadratic":
        return {"loss": work.quadratic_loss(seen["arrays"].to_numpy_ndarrays()[0])}
    net = work.make_net()
    net.load_state_dict(seen["arrays"].to_torch_state_dict())
    return {"accuracy": work.accuracy(net)}


run_simulation(server_app=app, client_app=getattr(flower_client, WHAT), num_supernodes=CLIENTS,
               backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
if seen["missing"] or len(seen["times"]) != ROUNDS + 1:
    sys.exit(f"{len(seen['times'])} of {ROUNDS + 1} rounds, {seen['missing']} replies missing")
seconds = seen["times"][-1] - seen["times"][0]
print(json.dumps({"program": "flower", "work": WHAT, "clients_per_s": COHORT * ROUNDS / seconds, "seconds": seconds, **reached()}))
