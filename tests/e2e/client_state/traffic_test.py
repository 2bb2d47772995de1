"""What travels for strategies whose clients keep a state, in model sizes: the table of algorithms.md §2, measured through daemons with scripted
clients, by file descriptor and over gRPC. The identities of one daemon share a download.

usage: traffic_test.py BIN_DIR
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, write_safetensors  # noqa: E402

ELEMENTS, CLIENTS, VERSIONS = 1000, 3, 4
# strategy, vectors down, vectors up
TABLE = [("fedavg", 1, 1), ("fedavg_m", 2, 1), ("fedavg_m_vr", 2, 1), ("{name: scaffold, uplink: full}", 2, 2), ("scaffold", 2, 1),
         ("{name: scaffold, client_state: mirrored}", 2, 1), ("scaffold_m", 3, 1), ("scaffold_m_vr", 3, 2), ("rerce_admm", 1, 1),
         ("{name: rerce_admm, continual: true}", 1, 1), ("fedadmm", 1, 1)]


def main(bin_dir):
    for transfer in ["on", "off"]:
        with Federation(bin_dir, aggregator_flags=["--local-transfer", transfer]) as federation:
            federation.start_aggregator()
            model = federation.work / "model.safetensors"
            write_safetensors(model, {"w": ("F32", [ELEMENTS], f32([0.0] * ELEMENTS))})
            federation.start_client("site", "--identities", CLIENTS, "--learner", "offset")
            for strategy, down, up in TABLE:
                job = federation.submit(f"name: traffic\nmodel: {{tensors: {model}}}\nstrategy: {strategy}\ncohort: {{size: {CLIENTS}}}\n"
                                        f"local: {{steps: 2, lr: 0.1}}\nstop: {{versions: {VERSIONS}}}\n")
                shown = federation.wait_job(job)
                assert shown["state"] == "done" and not shown["updates_rejected"], shown
                size = 4 * ELEMENTS * VERSIONS
                got = (shown["bytes_down"] / size, shown["bytes_up"] / (size * CLIENTS))
                assert got == (down, up), f"{strategy}: expected {down} vectors down and {up} up, got {got[0]} and {got[1]}"
                epochs = {v["state_epoch"] for v in federation.cli("state", "ls", job)["versions"]}
                assert epochs == {0}, f"{strategy}: states began anew: {epochs}"
        print(f"ok {len(TABLE)} strategies, local transfer {transfer}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
