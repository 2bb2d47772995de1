"""`tributary nodes calibrate` measures a capacity that planners can use, from a file and from a job's layout.

usage: calibrate_test.py BIN_DIR
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, write_safetensors  # noqa: E402


def check(document, model_bytes):
    assert document["model_bytes"] == model_bytes, document
    assert document["capacity_updates"] > 0 and document["lone_seconds"] > 0, document
    curve = document["curve"]
    assert len(curve) >= 2, curve
    rates = [point["updates_per_second"] for point in curve]
    assert rates == sorted(set(rates)) and rates[0] > 0, rates
    assert all(point["seconds"] > 0 for point in curve), curve
    product = document["knee_updates_per_second"] * document["knee_seconds"]
    assert abs(document["capacity_updates"] - product) <= 1e-9 * product, document
    if document["bent"]:
        assert abs(document["knee_seconds"] - 1.2 * curve[0]["seconds"]) <= 1e-9, document


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir) as federation:
        model = federation.work / "model.safetensors"
        elements = 200_000
        write_safetensors(model, {"w": ("F32", [elements], f32([0.5] * elements))})
        out = federation.work / "capacity.json"
        for shape in ("flat", "shard", "tree"):
            document = federation.cli("nodes", "calibrate", "--model", model, "--workers", 2, "--step-s", 0.05, "--shape", shape, "--out", out, server=False)
            check(document, elements * 4)
            assert document["shape"] == shape and document["workers"] == 2, document
            assert json.loads(out.read_text()) == document, "the file and stdout say the same"
        federation.start_aggregator()
        job = federation.submit(f"name: c\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\n")
        from_job = federation.cli("nodes", "calibrate", "--job", job, "--workers", 1, "--step-s", 0.05)
        check(from_job, elements * 4)
        assert from_job["layout"] == document["layout"], "one layout, one fingerprint"
        code, error, _ = federation.cli("nodes", "calibrate", "--job", "nobody", check=False)
        assert code == 3 and "nobody" in error["error"]["message"], error
        code, error, _ = federation.cli("nodes", "calibrate", check=False)
        assert code == 2 and "--model" in error["error"]["message"], error
        code, error, _ = federation.cli("nodes", "calibrate", "--model", federation.work / "absent", check=False)
        assert code == 3, (code, error)
    print("calibrate: capacities for three shapes and a job's layout")


if __name__ == "__main__":
    main()
