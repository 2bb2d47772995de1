"""The demo's job, cut to six versions, through `tributary run` with the LibTorch client: real data, real training, real processes.

usage: demo_test.py BIN_DIR EXAMPLE.yaml
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONTRACT = ["id", "name", "state", "strategy", "version", "updates_committed", "updates_rejected", "metrics", "privacy", "bytes_up",
            "bytes_down", "model_sha256", "waiting_for"]
VERSIONS = 6
# Measured 0.84 after six versions; the full twenty reach 0.88.
ACCURACY = 0.80


def main():
    bin_dir, example = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="tributary-demo-") as work:
        job = Path(work) / "job.yaml"
        text, changed = re.subn(r"versions: \d+", f"versions: {VERSIONS}", example.read_text())
        assert changed == 1, example
        job.write_text(text)
        out = Path(work) / "out"
        done = subprocess.run([str(bin_dir / "tributary"), "run", str(job), "--clients", "10", "--out", str(out), "--json"],
                              capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        shown = json.loads(done.stdout)
        missing = [key for key in CONTRACT if key not in shown]
        assert not missing, f"the JSON lacks {missing}"
        assert shown["state"] == "done" and shown["version"] == VERSIONS, shown
        assert shown["updates_committed"] == 10 * VERSIONS and not shown["updates_rejected"], shown
        last = max(shown["metrics"], key=lambda m: m["version"])
        assert last["version"] == VERSIONS and last["examples"] == 10000, last
        assert last["accuracy"] >= ACCURACY, last
        assert "version 3/6" in done.stderr, "no progress was shown:\n" + done.stderr

        store = ["--store", shown["store"], "--json"]
        listed = json.loads(subprocess.run([str(bin_dir / "tributary"), "state", "ls", *store], capture_output=True, text=True, check=True).stdout)
        assert listed, "state ls shows nothing"
        model = Path(work) / "model.safetensors"
        subprocess.run([str(bin_dir / "tributary"), "state", "export", shown["id"], "--out", str(model), *store], check=True, capture_output=True)
        assert model.stat().st_size > 4 * 200_000, "the exported model is too small"
        subprocess.run([str(bin_dir / "tributary"), "state", "verify", *store], check=True, capture_output=True)
        print(f"accuracy {last['accuracy']:.4f} after {VERSIONS} versions")


if __name__ == "__main__":
    main()
