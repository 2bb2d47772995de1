"""`tributary privacy epsilon` and `privacy calibrate` against the recorded numbers of dp-accounting 0.6 and opacus 1.6.

usage: privacy_command_test.py TRIBUTARY GOLDEN_FOLDER
"""
import json
import subprocess
import sys
from pathlib import Path

TRIBUTARY, GOLDEN = sys.argv[1], json.loads((Path(sys.argv[2]) / "privacy_accountants.json").read_text())


def privacy(*args, code=0):
    done = subprocess.run([TRIBUTARY, "privacy", *map(str, args), "--json"], capture_output=True, text=True)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stderr


def near(got, expected, tolerance, what):
    assert abs(got - expected) <= tolerance * abs(expected), f"{what}: got {got}, expected {expected}"


def main():
    for kind, flags in (("poisson", []), ("fixed_size", ["--fixed-size"])):
        for number, row in enumerate(GOLDEN[kind]):
            rest = ["--sample-rate", row["q"], "--versions", row["versions"], "--delta", row["delta"], *flags]
            answer = privacy("epsilon", "--noise-multiplier", row["z"], *rest)
            assert answer["sampling"] == kind
            near(answer["rdp"], row["epsilon_rdp"], 5e-3, f"rdp of {kind} {rest}")
            if kind == "poisson":
                near(answer["pld"], row["epsilon_pld"], 1e-3, f"pld of {rest}")
            else:
                assert answer["pld"] is None and answer["adjacency"] == "replace", answer
            if number > 0:  # each calibration is dozens of spends; privacy_test.cc has more of them
                continue
            target = answer["rdp"] if kind == "fixed_size" else answer["pld"]
            back = privacy("calibrate", "--epsilon", target, *rest)
            near(back["noise_multiplier"], row["z"], 1e-4, f"calibration of {rest}")
            assert back["accountant"] == ("rdp" if kind == "fixed_size" else "pld")
    for row in GOLDEN["tree"]:
        answer = privacy("epsilon", "--tree", "--noise-multiplier", row["z"], "--versions", row["versions"], "--delta", row["delta"])
        near(answer["rdp"], row["epsilon_rdp"], 5e-3, "tree")
    for row in GOLDEN["full"]:
        answer = privacy("epsilon", "--noise-multiplier", row["z"], "--versions", row["versions"], "--delta", row["delta"])
        near(answer["pld"], row["epsilon_pld"], 1e-3, "everybody")
    refused = privacy("epsilon", "--sample-rate", 2, "--noise-multiplier", 1, "--versions", 10, "--delta", 1e-5, code=5)
    assert "sample rate" in refused["error"]["message"], refused
    privacy("epsilon", "--tree", "--fixed-size", "--noise-multiplier", 1, "--versions", 10, "--delta", 1e-5, code=2)
    print("privacy agrees with the published accountants")


main()
