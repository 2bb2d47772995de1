"""Privacy in `simulate`: the noise that was promised (gate T14), its price, budgets, drawn cohorts, adaptive clipping against its formula.
usage: privacy_test.py BIN_DIR [TEST…]
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/golden")]

import json  # noqa: E402
import math  # noqa: E402

import numpy as np  # noqa: E402

import generate as reference  # noqa: E402
from harness import read_safetensors, write_safetensors  # noqa: E402
from simulations import REFUSED, check, close, main  # noqa: E402

Q4 = reference.q4()
DELTA = 1e-5


def chi_square(values):
    """Of standard normals, in 50 classes of equal probability; 85.4 is the 99.9 % point with 49 degrees of freedom."""
    edges = np.array([-np.inf, *(quantile(k / 50) for k in range(1, 50)), np.inf])
    counts = np.histogram(values, edges)[0]
    expected = len(values) / 50
    return float(((counts - expected)**2 / expected).sum())


def quantile(p):
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if .5 * math.erfc(-middle / math.sqrt(2)) < p else (low, middle)
    return low


def still(simulator, clients, versions, flags=(), d=1000, **keys):
    """Clients whose data are all zero: their updates are zero, and what moves the model is noise. The models, and the document."""
    folder = simulator.work / f"still-{clients}-{d}"
    if not folder.exists():
        folder.mkdir()
        for i in range(clients):
            write_safetensors(folder / f"{i:03d}.safetensors", {"x": ("F64", [1, d], bytes(8 * d)), "y": ("F64", [1], bytes(8))})
    keys = {"local": {"steps": 1, "lr": .1}, "strategy": {"name": "fedavg", "weighting": "uniform"}, "cohort": {"size": clients}, **keys}
    job = simulator.job(folder, clients, model={"zoo": "wls"}, stop={"versions": versions}, **keys)
    file = simulator.work / "trajectory.safetensors"
    document = json.loads(simulator.command("simulate", job, "--json", "--contributors", "--trajectory", file, *flags).stdout)
    _, shape, values = read_safetensors(file)["models"]
    return np.frombuffer(values, "<f8").reshape(shape), document


def accountant(simulator, *flags):
    return json.loads(simulator.command("privacy", "epsilon", *flags, "--json").stdout)


def a_million_samples_have_the_promised_deviation_and_shape(simulator):
    """Of gate T14: each placement's noise, within 1 %, χ². Of 100 elements, as a step costs their square."""
    z, clip, clients, versions = .8, 2.0, 10, 10_000
    for placement, stddev in [("central", z * clip / clients), ("distributed", z * clip / clients), ("local", z * clip / math.sqrt(clients))]:
        models, document = still(simulator, clients, versions, d=100, privacy={"placement": placement, "clip": clip, "noise_multiplier": z, "delta": DELTA})
        noise = np.diff(models, axis=0).ravel()
        check(abs(noise.std() / stddev - 1) < .01, f"{placement}: expected a deviation of {stddev}, got {noise.std()}")
        check(abs(noise.mean()) < 5 * stddev / math.sqrt(len(noise)), f"{placement}: expected mean 0, got {noise.mean()}")
        check(chi_square(noise / stddev) < 85.4, f"{placement}: the noise is not normal: χ² = {chi_square(noise / stddev)}")
        check(document["privacy"]["placement"] == placement and document["privacy"]["insecure_seed"] is True, f"{placement}: {document['privacy']}")


def dropouts_do_not_shrink_the_noise(simulator):
    """Central, a fixed denominator: rounds of 3 of 10, and rounds of nobody, have the noise of 10."""
    for participation in [{"kind": "fixed", "size": 3}, {"kind": "trace", "rounds": [[0], []]}]:
        models, _ = still(simulator, 10, 400, privacy={"clip": 1, "noise_multiplier": 1, "delta": DELTA}, simulate={"participation": participation})
        deviations = np.diff(models, axis=0).std(axis=1)
        check(np.all(np.abs(deviations / .1 - 1) < .15), f"{participation}: expected deviations of 0.1, got {deviations.min()} to {deviations.max()}")


def no_noise_changes_no_bit_and_the_clip_binds(simulator):
    plain = {"strategy": {"name": "fedavg", "weighting": "uniform"}}
    for dtype in ["float32", "float64"]:
        private = {"clip": 1e6, "noise_multiplier": 0, "delta": DELTA}
        got = simulator.run(Q4, dtype=dtype, **plain, privacy=private)
        check(got["model_sha256"] == simulator.run(Q4, dtype=dtype, **plain)["model_sha256"], f"{dtype}: z = 0 changes bits")
        check(got["privacy"]["epsilon"] is None, f"without noise epsilon is infinite, got {got['privacy']}")
        norms = []
        for clip in [.3, 1e-3]:
            models, _ = simulator.trajectory(Q4, dtype=dtype, clients=4, cohort={"size": 1}, flags=["--clients", 1], stop={"versions": 3}, **plain,
                                             privacy={"clip": clip, "noise_multiplier": 0, "delta": DELTA})
            norms.append(np.linalg.norm(models[0]) / clip)
        check(all(1 - 1e-5 < norm <= 1 + 1e-6 for norm in norms), f"{dtype}: expected the norm to be the clip, got {norms} times it")


def what_versions_cost_is_what_the_accountant_says(simulator):
    z, clients = 2.0, 40
    private = {"clip": 1, "noise_multiplier": z, "delta": DELTA}
    g = reference.g(clients, 3)
    uniform = {"name": "fedavg", "weighting": "uniform"}
    store = simulator.work / "store"
    poisson = {"cohort": {"sampling": "poisson", "rate": .6}, "strategy": uniform, "stop": {"versions": 6}}
    document = simulator.run(g, flags=["--contributors", "--out", store], privacy=private, **poisson)
    spent = []
    for version in document["versions"]:
        by_hand = accountant(simulator, "--sample-rate", .6, "--noise-multiplier", z, "--versions", version["version"], "--delta", DELTA)
        spent.append(version["privacy"]["epsilon"])
        close(spent[-1], by_hand["pld"], 1e-6 * by_hand["pld"], f"version {version['version']}")
        stored = json.loads(simulator.command("state", "get", "--store", store, "--version", version["version"], "--json").stdout)
        check(stored["privacy"]["epsilon"] == spent[-1], f"the store says {stored['privacy']}")
    check(len({len(v["contributors"]) for v in document["versions"]}) > 1, "Poisson cohorts differ in size")

    budget = (spent[2] + spent[3]) / 2
    ended = simulator.run(g, privacy={**private, "epsilon_budget": budget}, **poisson)
    check(ended["version"] == 3 and ended["privacy"]["epsilon"] <= budget and "budget is spent" in ended["state_reason"], f"{ended['state_reason']}")
    found = simulator.run(g, privacy={"clip": 1, "epsilon": 3, "delta": DELTA}, **poisson)
    check(2.99 < found["privacy"]["epsilon"] <= 3 and found["privacy"]["noise_multiplier"] > 0, f"{found['privacy']}")

    fixed = simulator.run(g, strategy=uniform, cohort={"size": 10, "population": clients}, stop={"versions": 4}, privacy=private)
    by_hand = accountant(simulator, "--fixed-size", "--sample-rate", .25, "--noise-multiplier", z / 2, "--versions", 4, "--delta", DELTA)
    check(fixed["privacy"]["sampling"] == "fixed_size" and fixed["privacy"]["epsilon_pld"] is None, f"{fixed['privacy']}")
    close(fixed["privacy"]["epsilon"], by_hand["rdp"], 1e-9, "fixed size")
    nobody_drawn = simulator.run(g, strategy=uniform, cohort={"size": 10}, stop={"versions": 4}, privacy=private)
    check(nobody_drawn["privacy"]["sample_rate"] == 1, "without a population nobody is drawn")


def cohorts_are_drawn_as_they_are_accounted(simulator):
    """Poisson: each client by itself, empty cohorts count. Fixed size: uniform."""
    clients, versions = 8, 4000
    g = reference.g(clients, 2)
    for cohort, rate in [({"sampling": "poisson", "rate": .25}, .25), ({"size": 2, "population": clients}, .25)]:
        document = simulator.run(g, flags=["--contributors"], cohort=cohort, local={"steps": 1, "lr": 1e-3}, stop={"versions": versions})
        counts, sizes = np.zeros(clients), np.zeros(clients + 1)
        for version in document["versions"]:
            sizes[len(version["contributors"])] += 1
            for contributor in version["contributors"]:
                counts[int(contributor["client"].split("-")[1])] += 1
        check(np.all(np.abs(counts - rate * versions) < 5 * math.sqrt(versions * rate * (1 - rate))), f"{cohort}: {counts}")
        if "rate" not in cohort:
            check(sizes[2] == versions, f"{cohort}: sizes {sizes}")
            continue
        expected = versions * np.array([math.comb(clients, k) * rate**k * (1 - rate)**(clients - k) for k in range(clients + 1)])
        statistic = float(((sizes - expected)**2 / expected)[:6].sum())
        check(sizes[0] > 0 and statistic < 25, f"cohort sizes {sizes}, expected {expected}: χ² = {statistic}")


def adaptive_reference(problem, versions, lr, steps, clip, quantile, rate):
    x, clips = np.zeros(len(problem[1][0])), [clip]
    models = []
    for _ in range(versions):
        updates = [reference.train(a, b, x, lr, steps) - x for a, b in zip(*problem)]
        norms = np.array([np.linalg.norm(u) for u in updates])
        x = x + sum(u * min(1, clip / norm) for u, norm in zip(updates, norms)) / len(updates)
        clip = clip * math.exp(-rate * (np.mean(norms <= clip) - quantile))
        clips.append(clip)
        models.append(x)
    return models, clips


def adaptive_clipping_follows_the_quantile(simulator):
    """Andrew et al. 2021: without noise the models and clips of the formula; the clip ends where the quantile of the norms lies."""
    g = reference.g(20, 5)
    for quantile, rate in [(.5, .2), (.8, .1)]:
        adaptive = {"quantile": quantile, "rate": rate}
        document = simulator.run(g, flags=["--contributors"], trajectory=True, strategy={"name": "fedavg", "weighting": "uniform"}, stop={"versions": 60},
                                 privacy={"clip": .05, "noise_multiplier": 0, "delta": DELTA, "adaptive_clip": adaptive})
        models, clips = adaptive_reference(g, 60, .1, 5, .05, quantile, rate)
        close(document["models"][1:], models, 1e-9, f"models at quantile {quantile}")
        close([v["privacy"]["clip"] for v in document["versions"]], clips[1:], 1e-12, f"clips at quantile {quantile}")


def adaptive_clipping_pays_for_its_count(simulator):
    """The count has noise σ_b, the sum z_Δ·C_t with the clip of its own version, and both together cost z."""
    z, count, clients = 1.5, 2.0, 20
    private = {"clip": 1, "noise_multiplier": z, "delta": DELTA}
    # Of updates that are 0 all are within: a quantile near 1 keeps the clip where it is.
    models, document = still(simulator, clients, 1000, d=100, privacy={**private, "adaptive_clip": {"count_stddev": count, "quantile": .99}})
    clips = np.array([1.0, *(v["privacy"]["clip"] for v in document["versions"])])
    z_delta = (z**-2 - (2 * count)**-2)**-.5
    noise = np.diff(models, axis=0) / (z_delta * clips[:-1, None] / clients)
    check(abs(noise.std() - 1) < .01, f"expected z_Δ·C_t/n, got {noise.std()} of it")
    check(chi_square(noise.ravel()) < 85.4, f"χ² = {chi_square(noise.ravel())}")
    shares = -np.diff(np.log(clips)) / .2 + .99     # b̃
    check(abs(shares.mean() - 1) < 5 * count / clients / math.sqrt(1000), f"expected shares of mean 1, got {shares.mean()}")
    check(abs(shares.std() / (count / clients) - 1) < .1, f"expected shares of deviation {count / clients}, got {shares.std()}")
    _, fixed = still(simulator, clients, 1000, d=100, privacy=private)
    check(document["privacy"]["epsilon"] == fixed["privacy"]["epsilon"], "adaptive clipping must cost what the noise multiplier says")


def what_cannot_be_accounted_is_refused(simulator):
    folder = simulator.problem(Q4)
    uniform = {"name": "fedavg", "weighting": "uniform"}

    def refused(words, privacy=None, **keys):
        private = {"clip": 1, "noise_multiplier": 1, "delta": DELTA, **(privacy or {})}
        job = simulator.job(folder, 4, **{"strategy": uniform, **keys}, privacy=private)
        message = json.loads(simulator.command("simulate", job, "--json", code=REFUSED).stdout)["error"]["message"]
        check(words in message, f"expected a message with '{words}', got '{message}'")

    refused("weights that the client sets", strategy={"name": "fedavg"})
    refused("cutoff: expected a finite number", strategy={"name": "fedau", "cutoff": "inf"})
    refused("looks at every update by itself", strategy={"name": "median"})
    refused("'step_norm'", strategy={"name": "fednova"})
    refused("control variate", strategy={"name": "scaffold"})
    refused("more than once", strategy={"name": "fedbuff", "buffer": 2})
    refused("record: true", record=True)
    refused("an update is a model", strategy={"name": "fedadmm"}, local={"solver": "exact"})
    refused("placement central", privacy={"placement": "local", "adaptive_clip": {}})
    refused("count_stddev", privacy={"adaptive_clip": {"count_stddev": .4}})
    refused("over_select", cohort={"size": 2, "over_select": 1.5})
    refused("does not pay for one version", privacy={"epsilon_budget": .001})
    refused("simulate.participation all", privacy={"placement": "distributed"}, simulate={"participation": {"kind": "fixed", "size": 2}})
    refused("expected a number greater than 0", privacy={"noise_multiplier": 0, "epsilon_budget": 3})
    refused("drawn among all clients", cohort={"size": 2, "population": 4}, simulate={"participation": {"kind": "bernoulli", "p": .5}})
    refused("at most the 4 clients", cohort={"size": 2, "population": 9})


def bounded_weights_are_paid_for(simulator):
    """FedAU's weights reach its cutoff κ: noise zκC on the sum over N. FedBuff with each client once a buffer: zC/M."""
    z, clients = .5, 10
    private = {"clip": 1, "noise_multiplier": z, "delta": DELTA}
    models, _ = still(simulator, clients, 100, strategy={"name": "fedau", "cutoff": 5}, privacy=private)
    close(np.diff(models, axis=0).std() / (5 * z / clients), 1, .02, "fedau")
    buffered = {"name": "fedbuff", "buffer": 4, "once_per_buffer": True}
    models, document = still(simulator, clients, 100, strategy=buffered, privacy=private, simulate={"delay": {"kind": "exponential", "mean": 1}})
    close(np.diff(models, axis=0).std() / (z / 4), 1, .02, "fedbuff")
    for version in document["versions"]:
        names = [c["client"] for c in version["contributors"]]
        check(len(names) == len(set(names)) == 4, f"a client is in version {version['version']} twice: {names}")


if __name__ == "__main__":
    main(sys.argv[1], [a_million_samples_have_the_promised_deviation_and_shape, dropouts_do_not_shrink_the_noise, no_noise_changes_no_bit_and_the_clip_binds,
                       what_versions_cost_is_what_the_accountant_says, cohorts_are_drawn_as_they_are_accounted, adaptive_clipping_follows_the_quantile,
                       adaptive_clipping_pays_for_its_count, what_cannot_be_accounted_is_refused, bounded_weights_are_paid_for])
