"""`tributary aggregate` on adapter files in PEFT's names: the error table of moe_lora.md 5.2 from files, against products made here with NumPy; and what
does not fit is refused by name.

usage: adapter_files_test.py TRIBUTARY
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

TRIBUTARY = sys.argv[1]
REFUSED = 5
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
A, B, RESIDUAL = LAYER + ".lora_A.weight", LAYER + ".lora_B.weight", LAYER + ".base_layer.residual"
CLIENTS, RANK, OUT, IN = 8, 4, 64, 48
# d: fedit, flexlora; as the note measured them.
TABLE = {0.1: (0.085, 0.079), 0.5: (0.41, 0.38), 1.0: (0.67, 0.61)}


def aggregate(folder, mode, updates, *flags, model="model.safetensors"):
    args = [x for path, weight in updates for x in ("--update", f"{path}:{weight}")]
    command = [TRIBUTARY, "aggregate", "--strategy", "fedavg", "--param", f"adapters={mode}", "--model", str(folder / model), *args,
               "--out", str(folder / "next.safetensors"), "--json", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def measured(folder, mode, updates, *flags):
    done = aggregate(folder, mode, updates, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), load_file(folder / "next.safetensors")


def write_clients(folder, difference, seed):
    """Adapters whose B is each client's own and whose A is a common one plus `difference` times its own; updates are their changes."""
    random = numpy.random.default_rng(seed)
    common = random.standard_normal((RANK, IN))
    save_file({A: common, B: numpy.zeros((OUT, RANK))}, folder / "model.safetensors")
    products, updates, halves = [], [], []
    for k in range(CLIENTS):
        b, a = random.standard_normal((OUT, RANK)), difference * random.standard_normal((RANK, IN))
        save_file({A: a, B: b}, folder / f"{k}.safetensors")
        save_file({B: b}, folder / f"b{k}.safetensors")
        products.append(b @ (common + a))
        updates.append((folder / f"{k}.safetensors", 1 + k % 3))
        halves.append((folder / f"b{k}.safetensors", 1 + k % 3))
    weights = numpy.array([w for _, w in updates], float)
    return sum(w * p for w, p in zip(weights / weights.sum(), products)), updates, halves, common


def table(folder):
    rows = {}
    for difference, (fedit, flexlora) in TABLE.items():
        errors = {}
        for seed in range(3):
            exact, updates, halves, common = write_clients(folder, difference, seed)
            norm = numpy.linalg.norm(exact)
            for mode in ("fedit", "flexlora", "flora", "fedex", "ffa"):
                answer, made = measured(folder, mode, halves if mode == "ffa" else updates)
                product = made[B] @ made[A] + made.get(RESIDUAL, 0)
                wanted = exact
                if mode == "ffa":
                    wanted = sum((1 + k % 3) * load_file(folder / f"b{k}.safetensors")[B] for k in range(CLIENTS)) / sum(w for _, w in updates) @ common
                    norm_of = numpy.linalg.norm(wanted)
                else:
                    norm_of = norm
                error = numpy.linalg.norm(product - wanted) / norm_of
                assert abs(error - answer["adapter_error"]) < 1e-12, (mode, error, answer)
                assert answer["adapter_errors"][0]["layer"] == LAYER.removeprefix("base_model.model."), answer
                errors.setdefault(mode, []).append(error)
        rows[difference] = {mode: float(numpy.mean(values)) for mode, values in errors.items()}
        # Unequal weights here: the note's table has equal ones.
        assert abs(rows[difference]["fedit"] - fedit) < 0.04 and abs(rows[difference]["flexlora"] - flexlora) < 0.04, rows
        assert rows[difference]["flexlora"] < rows[difference]["fedit"], rows
        assert all(rows[difference][mode] < 1e-14 for mode in ("flora", "fedex", "ffa")), rows
    return rows


def refusals(folder):
    _, updates, halves, _ = write_clients(folder, 0.5, 9)
    done = aggregate(folder, "rolora", updates)
    assert done.returncode == REFUSED and "wrong_phase: version 1 moves B" in done.stderr + done.stdout, (done.returncode, done.stdout, done.stderr)
    still = []
    for path, weight in updates:
        changes = load_file(path)
        save_file({A: numpy.zeros_like(changes[A]), B: changes[B]}, path.with_suffix(".half"))
        still.append((path.with_suffix(".half"), weight))
    answer, made = measured(folder, "rolora", still)
    assert answer["adapter_error"] < 1e-14 and numpy.array_equal(made[A], load_file(folder / "model.safetensors")[A])
    for mode, given, words in (("ffa", updates, "lora_A"), ("fedsb", halves, "lora_R"), ("fedx", updates, "did you mean 'fedex'")):
        done = aggregate(folder, mode, given)
        assert done.returncode in (2, REFUSED) and words in done.stderr + done.stdout, (mode, done.returncode, done.stdout, done.stderr)
    text = subprocess.run([TRIBUTARY, "aggregate", "--strategy", "fedavg", "--param", "adapters=fedit", "--model", str(folder / "model.safetensors"),
                           "--update", f"{updates[0][0]}:1", "--update", f"{updates[1][0]}:1", "--out", str(folder / "next.safetensors")],
                          capture_output=True, text=True, timeout=60)
    assert text.returncode == 0 and "RELATIVE" in text.stdout and "self_attn.q_proj" in text.stdout, text.stdout + text.stderr


def main():
    with tempfile.TemporaryDirectory(prefix="tributary-adapters-") as work:
        rows = table(Path(work))
        refusals(Path(work))
    for difference, row in rows.items():
        print(difference, {mode: f"{error:.2g}" for mode, error in row.items()})


if __name__ == "__main__":
    main()
