"""One small job or more for every strategy of the table, such that its models do not depend on who is quicker: everybody takes part in
every round, asynchronous strategies have one client or wait for all. For tests that compare runs bit for bit."""

CLIENTS = 5

SGD = {"local": {"steps": 3, "lr": .05}}
FORWARD = {"local": {"solver": "eggroll"}}
ONE = {"cohort": {"size": 1}}
# Beyond the defaults: (parameters, keys of the job), as many as are to be tried.
SETTINGS = {
    "known_p": [({"p": .5}, SGD)],
    "fedprox": [({"mu": .3}, SGD)],
    "fedadam": [({"server_lr": .1}, SGD)],
    "fedyogi": [({"server_lr": .1}, SGD)],
    "fedadagrad": [({"server_lr": .1}, SGD)],
    "trimmed_mean": [({"trim": 1}, SGD)],
    "krum": [({"byzantine": 1}, SGD)],
    "multi_krum": [({"byzantine": 1}, SGD)],
    "centered_clipping": [({"radius": 1.0, "start": "previous"}, SGD)],
    "fedbuff": [({"buffer": CLIENTS, "restart": "commit"}, SGD)],
    "async_fedavg": [({}, {**SGD, **ONE})],
    "fedasync": [({}, {**SGD, **ONE})],
    "fedfix": [({"interval_s": .03, "weight": "none"}, {**SGD, **ONE})],
    "scaffold": [({"uplink": "full"}, SGD), ({"uplink": "delta"}, SGD), ({}, {"local": {"steps": [1, 2, 3, 4, 5], "lr": .05}})],
    "scaffold_m": [({"beta": .3, "uplink": "full"}, SGD), ({"beta": .3}, SGD)],
    "fedavg_m_vr": [({"beta": .3}, SGD), ({"beta": .3, "warm_start": False}, SGD)],
    "scaffold_m_vr": [({"beta": .3}, SGD), ({"beta": .3, "warm_start": False}, SGD)],
    "rerce_admm": [({"rho": 2}, SGD), ({"continual": True}, {"local": {"solver": "exact"}})],
    # (population / CLIENTS is even)
    "eggroll": [({"population": 20, "lr": .3}, FORWARD), ({"population": 40, "rank": 3, "center": "client", "server": "adamw"}, FORWARD)],
    "fedadmm": [({"rho": 2}, SGD), ({"order": "dual_first"}, {"local": {"solver": "exact"}})],
}


def jobs(names):
    """(what, keys of the job) for each of the strategies named."""
    for name in names:
        for params, keys in SETTINGS.get(name, [({}, SGD)]):
            yield " ".join([name, *(f"{k}={v}" for k, v in params.items())]), {"strategy": {"name": name, **params}, "cohort": {"size": CLIENTS}, **keys}
