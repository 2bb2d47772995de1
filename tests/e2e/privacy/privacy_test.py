"""Jobs with privacy through real daemons: the noise that was promised is there, the spend is what `tributary privacy epsilon` says of the
same event, the budget stops the job before it is exceeded, and what cannot be accounted for is refused by name.

usage: privacy_test.py BIN_DIR
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, from_f32, read_safetensors, write_safetensors  # noqa: E402

BIN = Path(sys.argv[1])
ELEMENTS = 1_000_000
HEAD = "name: dp\nmodel: {{tensors: {folder}/{model}.safetensors}}\nstrategy: {{name: fedavg, weighting: {weighting}}}\nseed: 5\n"


def deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values)), mean


def chi_square(values, stddev):
    """Of 50 classes of equal probability; 85.4 is the 99.9 % point with 49 degrees of freedom."""
    counts = [0] * 50
    for x in values:
        counts[min(49, int(50 * 0.5 * math.erfc(-x / stddev / math.sqrt(2))))] += 1
    expected = len(values) / 50
    return sum((count - expected) ** 2 / expected for count in counts)


class Rig:
    """One aggregator and a crowd of clients whose updates are all the same small vector."""

    def __init__(self, identities):
        self.federation = Federation(BIN)
        self.folder = self.federation.work
        for model, elements in (("large", ELEMENTS), ("small", 64)):
            write_safetensors(self.folder / f"{model}.safetensors", {"w": ("F32", [elements], f32([0.0] * elements))})
        write_safetensors(self.folder / "buffered.safetensors", {"w": ("F32", [4], f32([0.0] * 4)), "steps": ("I64", [1], bytes(8))})
        self.federation.start_aggregator()
        self.federation.start_client("c", "--identities", identities, "--learner", "offset", "--offset", "1")

    def yaml(self, rest, model="small", weighting="uniform"):
        return HEAD.format(folder=self.folder, model=model, weighting=weighting) + rest

    def run(self, rest, **kinds):
        job = self.federation.submit(self.yaml(rest, **kinds))
        shown = self.federation.wait_job(job)
        assert shown["state"] == "done", shown
        return shown

    def model(self, shown, version=None):
        out = self.folder / "out.safetensors"
        self.federation.cli("state", "export", shown["id"], *(["--version", version] if version is not None else []), "--out", out)
        return from_f32(read_safetensors(out)["w"][2])

    def refused(self, rest, *words, **kinds):
        path = self.folder / "refused.yaml"
        path.write_text(self.yaml(rest, **kinds))
        code, document, stderr = self.federation.cli("submit", path, check=False)
        message = document["error"]["message"] if document else stderr
        assert code == 5 and all(word in message for word in words), (rest, code, message)


def main():
    rig = Rig(identities=30)
    with rig.federation as federation:
        accountant = lambda *flags: federation.cli("privacy", "epsilon", *flags, server=False)

        # Central: ‖Δ‖ = √1e6 · 1.0xx is clipped to C = 10, so each update is C/√d = 0.01 everywhere; the mean of 4 has noise zC/|S|.
        z, clip, size = 0.5, 10.0, 4
        shown = rig.run(f"cohort: {{size: {size}, population: 20}}\nstop: {{versions: 1}}\n"
                        f"privacy: {{mechanism: gaussian, placement: central, clip: {clip}, noise_multiplier: {z}, delta: 1e-5}}\n", model="large")
        values = rig.model(shown)
        stddev, mean = deviation(values)
        assert abs(stddev / (z * clip / size) - 1) < 0.01, stddev
        assert abs(mean - clip / math.sqrt(ELEMENTS)) < 6 * stddev / math.sqrt(ELEMENTS), mean
        assert chi_square([x - 0.01 for x in values], z * clip / size) < 85.4
        expected = accountant("--fixed-size", "--sample-rate", size / 20, "--noise-multiplier", z / 2, "--versions", 1, "--delta", 1e-5)
        spend = shown["privacy"]
        assert spend["sampling"] == "fixed_size" and spend["adjacency"] == "replace" and spend["epsilon_pld"] is None, spend
        assert abs(spend["epsilon"] - expected["rdp"]) < 1e-9, (spend, expected)
        print(f"central: deviation {stddev:.5f}, promised {z * clip / size}; epsilon {spend['epsilon']:.4f}")

        # Distributed: three shares of variance (zC)²/3 each; the sum has (zC)².
        shown = rig.run(f"cohort: {{size: 3}}\nstop: {{versions: 1}}\n"
                        f"privacy: {{placement: distributed, clip: {clip}, noise_multiplier: {z}, delta: 1e-5}}\n", model="large")
        stddev, _ = deviation(rig.model(shown))
        assert abs(stddev / (z * clip / 3) - 1) < 0.01, stddev
        assert shown["privacy"]["sample_rate"] == 1, "without a population nobody is drawn"

        # Local: all of it on each of the three.
        shown = rig.run(f"cohort: {{size: 3}}\nstop: {{versions: 1}}\n"
                        f"privacy: {{placement: local, clip: {clip}, noise_multiplier: {z}, delta: 1e-5}}\ncodec: int8\n", model="large")
        stddev, _ = deviation(rig.model(shown))
        assert abs(stddev / (z * clip / math.sqrt(3)) - 1) < 0.01, stddev

        # Poisson: who takes part is chance; the epsilon is that of the same event by hand, after every version.
        rest = ("cohort: {sampling: poisson, rate: 0.75, population: 30}\nstop: {versions: 5}\n"
                "privacy: {clip: 1.0, noise_multiplier: 2.0, delta: 1e-6}\n")
        shown = rig.run(rest)
        by_hand = accountant("--sample-rate", 0.75, "--noise-multiplier", 2, "--versions", 5, "--delta", 1e-6)
        assert abs(shown["privacy"]["epsilon"] - by_hand["pld"]) < 1e-6 * by_hand["pld"], (shown["privacy"], by_hand)
        versions = [federation.cli("state", "get", shown["id"], "--version", v) for v in range(1, 6)]
        counts = [len(v["contributors"]) for v in versions]
        assert len(set(counts)) > 1 and all(10 <= count <= 30 for count in counts), counts
        spent = [v["privacy"]["epsilon"] for v in versions]
        assert spent == sorted(spent) and 0 < spent[0] < spent[-1] == shown["privacy"]["epsilon"], spent
        print(f"poisson: cohorts of {counts}, epsilon {spent[-1]:.4f}")

        # The budget pays for the versions that fit and for no more; an epsilon finds its noise.
        budget = (spent[1] + spent[2]) / 2
        shown = rig.run(rest.replace("delta: 1e-6", f"delta: 1e-6, epsilon_budget: {budget}"))
        assert shown["version"] == 2 and shown["privacy"]["epsilon"] <= budget, shown
        assert "budget is spent" in shown["state_reason"], shown["state_reason"]
        shown = rig.run(rest.replace("noise_multiplier: 2.0", "epsilon: 3"))
        assert 2.99 < shown["privacy"]["epsilon"] <= 3, shown["privacy"]

        # Noise from the operating system is new every time; from the job's seed it is the same, and the job says so.
        fixed = "cohort: {size: 3}\nstop: {versions: 2}\nreproducible: true\nprivacy: {clip: 1.0, noise_multiplier: 1.0, delta: 1e-5%s}\n"
        secret = [rig.run(fixed % "")["model_sha256"] for _ in range(2)]
        seeded = [rig.run(fixed % ", insecure_seed: true") for _ in range(2)]
        assert secret[0] != secret[1]
        assert seeded[0]["model_sha256"] == seeded[1]["model_sha256"] and seeded[0]["privacy"]["insecure_seed"] is True

        # Cohorts of nobody count, and their version has the noise of every other.
        z, rate = 1.0, 0.01
        shown = rig.run(f"cohort: {{sampling: poisson, rate: {rate}, population: 30}}\nstop: {{versions: 8}}\n"
                        f"privacy: {{clip: 0.001, noise_multiplier: {z}, delta: 1e-5}}\n")
        versions = [federation.cli("state", "get", shown["id"], "--version", v) for v in range(1, 9)]
        empty = [v["version"] for v in versions if not v["contributors"]]
        assert len(empty) >= 2, [len(v["contributors"]) for v in versions]
        moved = [b - a for a, b in zip(rig.model(shown, empty[0] - 1), rig.model(shown, empty[0]))]
        stddev, _ = deviation(moved)
        assert abs(stddev / (z * 0.001 / (rate * 30)) - 1) < 0.5, stddev   # 64 elements
        print(f"nobody drawn in versions {empty}: their noise {stddev:.5f}")

        # Adaptive clipping: all updates from a version have one norm; the clip grows towards it, and clients clip to the version's.
        norm = lambda version: math.sqrt(64) * (1 + version / 1000)
        shown = rig.run("cohort: {size: 10}\nstop: {versions: 30}\nreproducible: true\n"
                        "privacy: {clip: 1.0, noise_multiplier: 0, delta: 1e-5, adaptive_clip: {quantile: 0.5, rate: 0.5}}\n")
        versions = [federation.cli("state", "get", shown["id"], "--version", v) for v in range(0, 31)]
        clips = [v["privacy"]["clip"] for v in versions]
        expected = [1.0]
        for version in range(30):
            expected.append(expected[-1] * math.exp(-0.5 * ((1 if norm(version) <= expected[-1] else 0) - 0.5)))
        assert max(abs(a / b - 1) for a, b in zip(clips, expected)) < 1e-12, (clips, expected)
        assert all("within_clip" not in c["scalars"] for v in versions for c in v["contributors"]), "whose update was within is not kept"
        for version in (1, 3, 20):
            moved = [b - a for a, b in zip(rig.model(shown, version - 1), rig.model(shown, version))]
            assert abs(math.sqrt(sum(x * x for x in moved)) / min(norm(version - 1), clips[version - 1]) - 1) < 1e-4, (version, clips[version - 1])
        print(f"adaptive clipping: {clips[0]:.2f} to {clips[-1]:.2f}, norms of {norm(0):.2f} to {norm(29):.2f}")

        privacy = "privacy: {clip: 1.0, noise_multiplier: 1.0, delta: 1e-5}\n"
        rig.refused("cohort: {size: 3}\n" + privacy, "weighting", "uniform", weighting="examples")
        rig.refused("cohort: {size: 3, population: 10, over_select: 1.5}\n" + privacy, "over_select")
        rig.refused("cohort: {size: 3}\n" + privacy.replace("1e-5}", "1e-5, adjacency: add_remove}"), "adjacency")
        rig.refused("cohort: {sampling: poisson, rate: 0.1, population: 30}\n" + privacy.replace("clip", "placement: distributed, clip"), "rate × population")
        rig.refused("cohort: {sampling: poisson, rate: 0.1}\n" + privacy, "cohort.population")
        rig.refused("cohort: {size: 3}\nrecord: true\n" + privacy, "record: true")
        rig.refused("cohort: {size: 3}\n" + privacy.replace("1e-5}", "1e-5, epsilon_budget: 0.001}"), "does not pay for one version")
        rig.refused("cohort: {size: 3}\n" + privacy, "counters", model="buffered")
        rig.refused("cohort: {size: 3}\n" + privacy.replace("1.0, delta", "1.0, epsilon: 3, delta"), "both")
        print("what cannot be accounted for is refused")


main()
