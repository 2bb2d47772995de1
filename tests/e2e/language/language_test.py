"""A mixture of experts learns four clients' texts, one file each, through `tributary run` with the LibTorch client; its updates travel as int8. The
server owns the routers' biases and weights experts by tokens, from counts that come with the updates; the record, folded again, gives the same bits;
so it is where the biases follow quantiles of all clients' margins.
Byte pairs of a tokenizer.json in longer windows; clients with another file than the job names say so.
And a router that looks ahead in a causal model is refused when the job is submitted, as is expert weighting under privacy.

usage: language_test.py BIN_DIR
"""
import array
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/support"))
from harness import read_safetensors  # noqa: E402

TEXTS = {"de": "der hund lief durch den wald und die katze ", "en": "the cat sat on the mat and the dog ran ",
         "fr": "le chat dort sur le tapis et le chien court ", "pl": "kot spi na macie a pies biega po lesie "}
VERSIONS = 3

JOB = """
name: languages
model: {{zoo: moe_transformer, params: {{layers: 2, width: 64, heads: 4, experts: 4, expert_hidden: 64, router: {router}}}}}
data: {{source: text, path: {texts}, partition: {{kind: by_file}}}}
cohort: {{size: 4}}
local: {{solver: sgd, steps: 20, batch: 8, lr: 0.3}}
codec: int8
strategy: {{name: fedavg, expert_weights: tokens}}
record: {record}
reproducible: true
{privacy}
stop: {{versions: {versions}}}
"""


def run(bin_dir, job):
    # One thread each: four processes share the machine.
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [str(bin_dir / "tributary"), "run", str(job), "--clients", "4", "--out", str(job.with_suffix(".out")), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def learned(bin_dir, job, work):
    """What `jobs show` says of a job that has run, the bias of its first layer, and the record folded again."""
    done = run(bin_dir, job)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert shown["state"] == "done" and shown["updates_committed"] == 4 * VERSIONS and not shown["updates_rejected"], shown
    store = job.with_suffix(".out") / "store"
    exported = work / f"{job.stem}.safetensors"
    weights = subprocess.run([bin_dir / "tributary", "state", "export", shown["id"], "--store", store, "--out", exported], capture_output=True, text=True)
    assert weights.returncode == 0, weights.stdout + weights.stderr
    bias = array.array("f", read_safetensors(exported)["model.layers.0.block_sparse_moe.gate.e_score_correction_bias"][2])
    assert any(bias) and max(map(abs, bias)) <= 2, bias
    replayed = subprocess.run([bin_dir / "tributary", "replay", shown["id"], "--store", store, "--json"], capture_output=True, text=True)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    versions = json.loads(replayed.stdout)["versions"]
    assert len(versions) == VERSIONS and all(v["sha256"] == v["recorded_sha256"] for v in versions), versions
    return shown


def pairs(bin_dir, texts, work):
    """A transformer over 412 byte pairs."""
    tokenizer, job = work / "tokenizer.json", work / "pairs.yaml"
    tokenizer.write_text(json.dumps(json.loads((ROOT / "tests/golden/bpe.json").read_text())[0]["tokenizer"]))
    spec = {"name": "pairs", "model": {"zoo": "transformer", "params": {"input": 64, "vocabulary": 412, "layers": 1, "width": 32, "heads": 2, "hidden": 64}},
            "data": {"source": "text", "path": str(texts), "window": 64, "tokenizer": str(tokenizer), "tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
                     "partition": {"kind": "by_file"}},
            "cohort": {"size": 4}, "local": {"steps": 20, "batch": 8, "lr": .3}, "stop": {"versions": 2}}
    job.write_text(json.dumps(spec))
    done = run(bin_dir, job)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [m["loss"] for m in json.loads(done.stdout)["metrics"]]
    assert max(losses) < .7 * math.log(412), losses  # of 412 tokens at random 6.02
    wrongs = [({**spec, "data": {**spec["data"], "tokenizer_sha256": "0" * 64}}, "expected the file whose SHA-256 is 0000"),
              ({**spec, "data": {**spec["data"], "window": 65}}, "65"),
              ({**spec, "model": {"zoo": "transformer", "params": {**spec["model"]["params"], "vocabulary": 256}}}, "vocabulary")]
    for number, (wrong, reason) in enumerate(wrongs):
        job = work / f"wrong-{number}.yaml"
        job.write_text(json.dumps(wrong))
        # (Clients of daemons decline such tasks by name, and are asked again.)
        refused = subprocess.run([bin_dir / "tributary", "simulate", job, "--clients", "4", "--out", job.with_suffix(".out"), "--json"], capture_output=True, text=True, timeout=100)
        assert refused.returncode != 0 and reason in refused.stdout + refused.stderr, (refused.returncode, refused.stdout, refused.stderr)


def main():
    bin_dir = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="tributary-language-") as work:
        texts = Path(work) / "texts"
        texts.mkdir()
        for name, text in TEXTS.items():
            (texts / f"{name}.txt").write_text(text * 400)
        job = Path(work) / "job.yaml"
        job.write_text(JOB.format(router="{name: alf, step: 0.05}", texts=texts, versions=VERSIONS, record="true", privacy=""))
        shown = learned(bin_dir, job, Path(work))
        losses = {m["version"]: m["loss"] for m in shown["metrics"]}
        # 256 bytes at random lose 5.55, the letters' frequencies alone about 2.8.
        assert losses[VERSIONS] < 3.3 < math.log(256), losses
        assert losses[VERSIONS] < losses[1], losses
        moe = {m["version"]: m["moe"] for m in shown["metrics"]}
        assert all(0 <= m["specialisation"] <= 1 and 1 <= m["effective_experts"] <= 4 and set(m["layers"]) == {"0", "1"} for m in moe.values()), moe

        job = Path(work) / "quantile.yaml"
        job.write_text(JOB.format(router="{name: quantile, scope: global}", texts=texts, versions=VERSIONS, record="true", privacy=""))
        learned(bin_dir, job, Path(work))

        pairs(bin_dir, texts, Path(work))

        for router, privacy, reason in (("expert_choice", "", "looks ahead"),
                                        ("none", "privacy: {clip: 1, noise_multiplier: 1, delta: 1e-5}", "not sent in a job with privacy")):
            job = Path(work) / "refused.yaml"
            job.write_text(JOB.format(router=router, texts=texts, versions=VERSIONS, record="false", privacy=privacy))
            refused = run(bin_dir, job)
            assert refused.returncode == 5 and reason in refused.stdout + refused.stderr, (refused.returncode, refused.stdout, refused.stderr)
        print(f"losses {losses}")


if __name__ == "__main__":
    main()
