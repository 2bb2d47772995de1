"""`tributary aggregate` on good and on bad files: results by hand, exit codes, messages that name file and tensor.

usage: aggregate_test.py TRIBUTARY
"""
import array
import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import f32, from_f32, read_safetensors, write_safetensors  # noqa: E402

TRIBUTARY = sys.argv[1]
FAILED, USAGE, NOT_FOUND, REFUSED = 1, 2, 3, 5


def i64(*values):
    return array.array("q", values).tobytes()


def run(*args):
    return subprocess.run([TRIBUTARY, "aggregate", *map(str, args)], capture_output=True, text=True, timeout=60)


class Folder:
    def __init__(self, path):
        self.path = Path(path)
        self.model = self.write("model", {"w": ("F32", [2, 2], f32([1, 2, 3, 4])), "b": ("F32", [], f32([0.5])), "n": ("I64", [2], i64(5, 6))})

    def write(self, name, tensors):
        path = self.path / f"{name}.safetensors"
        write_safetensors(path, tensors)
        return path

    def update(self, name, values, b=(0.0,), n=(0, 0), **changes):
        tensors = {"b": ("F32", [], f32(b)), "n": ("I64", [2], i64(*n)), "w": ("F32", [2, 2], f32(values))}
        tensors.update(changes)
        return self.write(name, {k: v for k, v in tensors.items() if v is not None})

    def aggregate(self, updates, *flags, out="out"):
        out = self.path / f"{out}.safetensors"
        args = [x for u, w in updates for x in ("--update", f"{u}:{w}")]
        return run("--strategy", "fedavg", "--model", self.model, *args, "--out", out, *flags), out


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def good(folder):
    a = folder.update("a", [1, 0, 0, -1], b=[1], n=[7, 1])
    b = folder.update("b", [5, 4, 0, 3], b=[-1], n=[2, 9])
    done, out = folder.aggregate([(a, 3), (b, 1)], "--json")
    check(done.returncode == 0, done.stderr)
    answer = json.loads(done.stdout)
    tensors = read_safetensors(out)
    check(list(from_f32(tensors["w"][2])) == [3, 3, 3, 4], list(from_f32(tensors["w"][2])))
    check(list(from_f32(tensors["b"][2])) == [1.0], "b")
    check(tensors["n"][2] == i64(7, 9), "counters take the largest value")
    flat = tensors["w"][2] + tensors["b"][2] + tensors["n"][2]
    check(answer == {"strategy": "fedavg", "updates": 2, "sum_weight": 4.0, "reproducible": False,
                     "model_sha256": hashlib.sha256(flat).hexdigest(), "out": str(out)}, answer)

    # A parameter counts; a path may hold a colon; text output.
    colon = folder.path / "with:colon.safetensors"
    colon.write_bytes(a.read_bytes())
    done, out = folder.aggregate([(colon, "1e0")], "--param", "server_lr=0.5")
    check(done.returncode == 0 and "model_sha256" in done.stdout, done.stderr)
    check(list(from_f32(read_safetensors(out)["w"][2])) == [1.5, 2, 3, 3.5], "server_lr")

    # Reproducible: the same file in every order, and the same as exact arithmetic where that is exact.
    updates = [(a, 0.1), (b, 0.7), (folder.update("c", [1e-3, 2e-3, -7e-4, 0.3]), 1 / 3)]
    contents = set()
    for order in itertools.permutations(updates):
        done, out = folder.aggregate(order, "--reproducible")
        check(done.returncode == 0, done.stderr)
        contents.add(out.read_bytes())
    check(len(contents) == 1, "the order of --update changes the bytes")

    # F64.
    model = folder.write("m64", {"w": ("F64", [1], struct.pack("<d", 1.0))})
    update = folder.write("u64", {"w": ("F64", [1], struct.pack("<d", 1e-12))})
    out = folder.path / "o64.safetensors"
    done = run("--strategy", "fedavg", "--model", model, "--update", f"{update}:1", "--out", out)
    check(done.returncode == 0, done.stderr)
    check(read_safetensors(out)["w"][2] == struct.pack("<d", 1.0 + 1e-12), "F64 keeps its digits")


def bad(folder):
    good_update = folder.update("good", [0, 0, 0, 0])
    nan = float("nan")
    text = folder.path / "text.safetensors"
    text.write_text("not a tensor file")
    short = folder.path / "short.safetensors"
    short.write_bytes(good_update.read_bytes()[:-3])
    cases = [
        # name, updates, flags, exit code, words of the message
        ("missing update", [(folder.path / "none.safetensors", 1)], [], NOT_FOUND, ["none.safetensors"]),
        ("a folder", [(folder.path, 1)], [], None, [str(folder.path)]),
        ("not safetensors", [(text, 1)], [], REFUSED, ["text.safetensors"]),
        ("cut short", [(short, 1)], [], REFUSED, ["short.safetensors"]),
        ("NaN", [(folder.update("nan", [0, nan, 0, 0]), 1)], [], REFUSED, ["nan.safetensors", "'w'"]),
        ("infinity", [(folder.update("inf", [0, 0, 0, 0], b=[float("inf")]), 1)], [], REFUSED, ["inf.safetensors", "'b'"]),
        ("wrong shape", [(folder.update("shape", [0] * 4, w=("F32", [4], f32([0] * 4))), 1)], [], REFUSED, ["shape.safetensors", "'w'"]),
        ("wrong type", [(folder.update("type", [0] * 4, w=("F64", [2, 2], bytes(32))), 1)], [], REFUSED, ["type.safetensors", "'w'"]),
        ("tensor missing", [(folder.write("less", {"w": ("F32", [2, 2], f32([0] * 4)), "n": ("I64", [2], i64(0, 0))}), 1)],
         [], REFUSED, ["less.safetensors", "'b'"]),
        ("tensor too many", [(folder.update("more", [0] * 4, extra=("F32", [1], f32([0]))), 1)], [], REFUSED, ["more.safetensors", "'extra'"]),
        ("weight 0", [(good_update, 0)], [], REFUSED, ["weight"]),
        ("weight negative", [(good_update, -1)], [], REFUSED, ["weight"]),
        ("weight NaN", [(good_update, "nan")], [], REFUSED, ["weight"]),
        ("weight infinite", [(good_update, "inf")], [], REFUSED, ["weight"]),
        ("weight no number", [(good_update, "many")], [], USAGE, ["FILE:WEIGHT"]),
        ("parameter without value", [(good_update, 1)], ["--param", "server_lr"], USAGE, ["KEY=VALUE"]),
        ("unknown parameter", [(good_update, 1)], ["--param", "server_rl=1"], REFUSED, ["server_rl"]),
        ("parameter out of range", [(good_update, 1)], ["--param", "server_lr=-1"], REFUSED, ["server_lr"]),
        ("fixed point overflow", [(folder.update("huge", [3e38, 0, 0, 0]), 1)], ["--reproducible"], REFUSED, ["huge.safetensors", "'w'"]),
        ("result overflows F32", [(folder.update("big", [3.4e38, 0, 0, 0]), 1)], ["--param", "server_lr=10"], REFUSED, ["'w'"]),
        ("second update bad", [(good_update, 1), (folder.update("late", [nan] * 4), 1)], [], REFUSED, ["late.safetensors"]),
    ]
    untouched = folder.path / "kept.safetensors"
    for name, updates, flags, code, words in cases:
        untouched.write_bytes(b"before")
        done, _ = folder.aggregate(updates, *flags, out="kept")
        check(done.returncode == code or (code is None and done.returncode in (FAILED, REFUSED)), f"{name}: exit {done.returncode}: {done.stderr}")
        for word in words:
            check(word in done.stderr, f"{name}: '{word}' is not in: {done.stderr}")
        check(done.stdout == "", f"{name}: {done.stdout}")
        check(untouched.read_bytes() == b"before", f"{name}: the output was touched")
        if code not in (USAGE, None):
            done, _ = folder.aggregate(updates, "--json", *flags, out="kept")
            check(json.loads(done.stdout)["error"]["message"], name)
    u = f"{good_update}:1"
    for name, args, code, word in [
        ("no update", ["--strategy", "fedavg", "--model", folder.model, "--out", untouched], USAGE, "--update"),
        ("no colon", ["--strategy", "fedavg", "--model", folder.model, "--update", "x", "--out", untouched], USAGE, "FILE:WEIGHT"),
        ("unknown flag", ["--strategy", "fedavg", "--modle", "x"], USAGE, ""),
        ("unknown strategy", ["--strategy", "fedavgg", "--model", folder.model, "--update", u, "--out", untouched], REFUSED, "fedavg"),
        ("missing model", ["--strategy", "fedavg", "--model", folder.path / "no.safetensors", "--update", u, "--out", untouched], NOT_FOUND, "no.safetensors"),
        ("no folder for the output", ["--strategy", "fedavg", "--model", folder.model, "--update", u, "--out", folder.path / "no" / "x"], NOT_FOUND, "no"),
    ]:
        done = run(*args)
        check(done.returncode == code, f"{name}: exit {done.returncode}: {done.stderr}")
        check(word in done.stderr, f"{name}: '{word}' is not in: {done.stderr}")
    if os.getuid() != 0:
        done, _ = folder.aggregate([(good_update, 1)], out="/proc/none")
        check(done.returncode != 0, "wrote where one cannot")


with tempfile.TemporaryDirectory() as path:
    folder = Folder(path)
    good(folder)
    bad(folder)
print("aggregate: results, refusals and exit codes as expected")
