"""Expert-weighted aggregation in NumPy, from the rule of moe_lora.md section 4 and with none of the platform's code:

    W_e <- W_e + sum_k w_k r_ke D_ke / sum_k w_k r_ke,   r_ke = E c_ke / sum_j c_kj   (c: pairs of client k's tokens with expert e),

all other tensors the weighted mean; an expert that nobody's token went to stays. Also the load of all, its running mean, and what is measured.

    python3 tests/golden/expert_weights.py > tests/golden/expert_weights.json
"""
import json

import numpy as np

LAYERS, EXPERTS, WIDTH = 2, 3, 4
WEIGHTS = [10.0, 3.0, 7.0]
COUNTS = [  # client, layer, expert; nobody of layer 1 goes to expert 2
    [[40, 10, 30], [80, 0, 0]],
    [[0, 20, 20], [10, 30, 0]],
    [[5, 5, 50], [0, 60, 0]],
]
TOP_K = 1
EMA = 0.9


def main():
    rng = np.random.default_rng(6)
    names = ["embed"] + [f"layers.{l}.moe.experts.{e}.{w}.weight" for l in range(LAYERS) for e in range(EXPERTS) for w in ("w1", "w2")] + ["head"]
    model = {name: rng.normal(size=WIDTH) for name in names}
    deltas = [{name: rng.normal(size=WIDTH) for name in names} for _ in WEIGHTS]
    counts = np.array(COUNTS, float)
    weights = np.array(WEIGHTS)
    nexts, plain = {}, {}
    for name in names:
        plain[name] = model[name] + sum(w * d[name] for w, d in zip(weights, deltas)) / weights.sum()
        if ".experts." not in name:
            nexts[name] = plain[name]
            continue
        layer, expert = int(name.split(".")[1]), int(name.split(".")[4])
        r = EXPERTS * counts[:, layer, expert] / counts[:, layer].sum(axis=1)
        total = (weights * r).sum()
        nexts[name] = model[name] if total == 0 else model[name] + sum(w * d[name] for w, d in zip(weights * r, deltas)) / total
    all_counts = counts.sum(axis=0)
    share = all_counts / all_counts.sum(axis=1, keepdims=True)
    measures = []
    for layer in range(LAYERS):
        joint = counts[:, layer] / counts[:, layer].sum()
        client, expert = joint.sum(axis=1), joint.sum(axis=0)
        information = sum(joint[k, e] * np.log(joint[k, e] / (client[k] * expert[e])) for k in range(3) for e in range(EXPERTS) if joint[k, e] > 0)
        measures.append({"max_vio": all_counts[layer].max() / all_counts[layer].mean() - 1,
                         "client_max_vio": float(np.mean([c.max() / c.mean() - 1 for c in counts[:, layer]])),
                         "specialisation": information / np.log(3), "effective_experts": share[layer].sum()**2 / (share[layer]**2).sum()})
    second = np.array([[0.2, 0.3, 0.5], [0.0, 0.5, 0.5]])  # the share of another version
    print(json.dumps({"weights": WEIGHTS, "counts": COUNTS, "top_k": TOP_K, "names": names,
                      "model": {n: list(v) for n, v in model.items()}, "deltas": [{n: list(v) for n, v in d.items()} for d in deltas],
                      "tokens": {n: list(v) for n, v in nexts.items()}, "mean": {n: list(v) for n, v in plain.items()},
                      "share": share.tolist(), "measures": measures, "ema": EMA, "before": second.tolist(), "after": (EMA * second + (1 - EMA) * share).tolist()}))


main()
