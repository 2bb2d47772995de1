"""Wrong jobs and wrong files through the real programs: each gets a named error and the right exit code; the daemon lives, and a
job that runs meanwhile ends with the same model hash as without them.

usage: bad_input_test.py BIN_DIR
"""
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, write_safetensors  # noqa: E402

USAGE, NOT_FOUND, UNREACHABLE, REFUSED = 2, 3, 4, 5

# name, YAML (with {model} for a good tensors file), words the message must have
JOBS = [
    ("empty", "", ["job"]),
    ("a list", "- a\n- b\n", ["map"]),
    ("bad yaml", "name: [1, 2\n", ["job.yaml"]),
    ("no name", "model: {{tensors: {model}}}\ncohort: {{size: 2}}\n", ["name"]),
    ("no cohort", "name: x\nmodel: {{tensors: {model}}}\n", ["size"]),
    ("unknown key", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nstrategi: fedavg\n", ["strategi", "strategy"]),
    ("unknown nested key", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2, quorm: 1}}\n", ["quorm", "quorum"]),
    ("cohort of type string", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: ten}}\n", ["size", "ten"]),
    ("cohort is a number", "name: x\nmodel: {{tensors: {model}}}\ncohort: 3\n", ["cohort"]),
    ("cohort of 0", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 0}}\n", ["size"]),
    ("negative cohort", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: -2}}\n", ["size"]),
    ("quorum over size", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2, quorum: 3, deadline_s: 1}}\n", ["quorum"]),
    ("over_select below 1", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2, over_select: 0.5}}\n", ["over_select"]),
    ("negative deadline", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2, deadline_s: -1}}\n", ["deadline_s"]),
    ("two models", "name: x\nmodel: {{tensors: {model}, zoo: cnn}}\ncohort: {{size: 2}}\n", ["model"]),
    ("no model", "name: x\ncohort: {{size: 2}}\n", ["model"]),
    ("unknown strategy", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nstrategy: fedavgg\n", ["fedavgg", "fedavg"]),
    ("unknown strategy parameter", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nstrategy: {{name: fedavgm, bet: 0.5}}\n", ["bet"]),
    ("strategy parameter out of range", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nstrategy: {{name: fedavgm, beta: 1.5}}\n", ["beta"]),
    ("zero learning rate", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nlocal: {{lr: 0}}\n", ["lr"]),
    ("NaN learning rate", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nlocal: {{lr: .nan}}\n", ["lr"]),
    ("unknown dtype", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\ndtype: float16\n", ["dtype"]),
    ("dtype of the tensors differs", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\ndtype: float64\n", ["F32"]),
    ("unknown codec", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\ncodec: int9\n", ["int9", "int8"]),
    ("privacy without a bound", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nprivacy: {{mechanism: gaussian}}\n", ["privacy", "clip"]),
    ("name with a slash", "name: ../x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\n", ["name"]),
    ("no versions", "name: x\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\nstop: {{versions: 0}}\n", ["versions"]),
    ("duplicate key", "name: x\nname: y\nmodel: {{tensors: {model}}}\ncohort: {{size: 2}}\n", ["name"]),
    ("alias bomb", "a: &a [x, x]\nname: *a\nmodel: {{tensors: {model}}}\n", ["job.yaml"]),
]


def header_file(header, data=b"", length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + data


GOOD = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
# name, bytes of a safetensors file
FILES = [
    ("empty file", b""),
    ("seven bytes", b"\0" * 7),
    ("header length past the end", header_file(GOOD, b"\0" * 8, 1 << 40)),
    ("header length 2^63", header_file(GOOD, b"\0" * 8, 1 << 63)),
    ("truncated data", header_file(GOOD, b"\0" * 7)),
    ("extra data", header_file(GOOD, b"\0" * 9)),
    ("not JSON", header_file(b'{"w":', b"")),
    ("JSON list", header_file(b"[1,2]", b"")),
    ("overlap", header_file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', b"\0" * 12)),
    ("hole", header_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}', b"\0" * 12)),
    ("shape and size differ", header_file(b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', b"\0" * 8)),
    ("negative extent", header_file(b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', b"\0" * 8)),
    ("shape overflow", header_file(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}}', b"\0" * 8)),
    ("unknown dtype", header_file(b'{"w":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8)),
    ("half precision model", header_file(b'{"w":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}', b"\0" * 8)),
    ("NaN in the initial model", header_file(GOOD, f32([float("nan"), 1.0]))),
    ("no tensors", header_file(b"{}", b"")),
]


def reference_job(federation, folder):
    job = federation.submit(f"name: honest\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: 2}}\n"
                            "stop: {versions: 3}\nreproducible: true\n")
    return job


def expect(result, code, words, what):
    got, document, stderr = result
    assert got == code, f"{what}: exit code {got}, expected {code}: {document} {stderr}"
    message = str(document) + stderr
    assert document and "error" in document and document["error"]["message"], f"{what}: no error document: {document}"
    for word in words:
        assert word in message, f"{what}: the message does not name '{word}': {message}"


def main():
    bin_dir = Path(sys.argv[1])
    hashes = []
    rows = 0
    for hostile in (False, True):
        with Federation(bin_dir) as federation:
            folder = federation.work / "files"
            folder.mkdir()
            write_safetensors(folder / "model.safetensors", {"w": ("F32", [64], f32([0.5] * 64))})
            federation.start_aggregator()
            job = reference_job(federation, folder)
            federation.start_client("site-a", "--learner", "offset", "--offset", 1)
            if hostile:
                path = federation.work / "job.yaml"
                for name, yaml, words in JOBS:
                    path.write_text(yaml.format(model=folder / "model.safetensors"))
                    expect(federation.cli("submit", path, check=False), REFUSED, words, name)
                    rows += 1
                good = "name: x\nmodel: {{tensors: {}}}\ncohort: {{size: 2}}\n"
                for name, content in FILES:
                    (folder / "bad.safetensors").write_bytes(content)
                    path.write_text(good.format(folder / "bad.safetensors"))
                    expect(federation.cli("submit", path, check=False), REFUSED, ["bad.safetensors"] if "NaN" not in name else [], name)
                    expect(federation.cli("aggregate", "--strategy", "fedavg", "--model", folder / "model.safetensors", "--update",
                                          f"{folder}/bad.safetensors:1", "--out", folder / "x", server=False, check=False),
                           REFUSED, ["bad.safetensors"], "aggregate: " + name)
                    assert not (folder / "x").exists()
                    rows += 2
                path.write_text(good.format("/nowhere/model.safetensors"))
                expect(federation.cli("submit", path, check=False), NOT_FOUND, ["/nowhere/model.safetensors"], "missing tensors file")
                expect(federation.cli("submit", "/nowhere/job.yaml", check=False), NOT_FOUND, ["/nowhere/job.yaml"], "missing job file")
                expect(federation.cli("jobs", "show", "no-such-job", check=False), NOT_FOUND, ["no-such-job"], "unknown job")
                expect(federation.cli("state", "ls", "--store", "/nowhere", server=False, check=False), NOT_FOUND, ["/nowhere"], "no store")
                code, _, _ = federation.cli("jobs", "ls", "--server", "127.0.0.1:1", server=False, check=False)
                assert code == UNREACHABLE, code
                for weight in ["0", "-1", "nan", "inf", "x", ""]:
                    got, _, _ = federation.cli("aggregate", "--strategy", "fedavg", "--model", folder / "model.safetensors", "--update",
                                               f"{folder}/model.safetensors:{weight}", "--out", folder / "x", server=False, check=False)
                    assert got in (USAGE, REFUSED), f"weight '{weight}': exit code {got}"
                    rows += 1
                # Legal, and yet not what its author thinks: told at submission.
                path.write_text(f"name: x\nmodel: {{tensors: {folder / 'model.safetensors'}}}\ncohort: {{size: 2, quorum: 1}}\n")
                code, document, told = federation.cli("submit", path, check=False)
                assert code == 0 and "warning: cohort.quorum has no effect without cohort.deadline_s" in told, (code, document, told)
                federation.cli("jobs", "cancel", document["id"])
            federation.start_client("site-b", "--learner", "offset", "--offset", 2)
            shown = federation.wait_job(job)
            assert shown["state"] == "done", shown
            assert federation.aggregator.poll() is None, "the aggregator died:\n" + federation.log("aggregator.log")
            hashes.append(shown["model_sha256"])
    assert hashes[0] == hashes[1], f"wrong input changed a model: {hashes}"
    print(f"{rows} wrong inputs refused by name; the honest job's model is bit-identical")


if __name__ == "__main__":
    main()
