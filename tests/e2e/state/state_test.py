"""`tributary state` on a store whose content is known: from disk, then through an aggregator on the same store, with equal answers;
a damaged store; wrong requests.

usage: state_test.py BIN_DIR MAKE_STORE
"""
import array
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, f32, from_f32, read_safetensors  # noqa: E402

BIN, MAKE_STORE = Path(sys.argv[1]), sys.argv[2]
FAILED, USAGE, NOT_FOUND, UNREACHABLE, REFUSED = 1, 2, 3, 4, 5


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def run(*args, code=0):
    done = subprocess.run([str(BIN / "tributary"), "state", *map(str, args)], capture_output=True, text=True, timeout=60)
    check(done.returncode == code, f"state {args}: expected exit {code}, got {done.returncode}: {done.stdout}{done.stderr}")
    return done


def answers(work, where):
    """Every command's JSON, and the exported files; `where` is --store DIR or --server ADDRESS."""
    out = {}
    ask = lambda *args: json.loads(run(*args, *where, "--json").stdout)  # noqa: E731
    out["ls"] = ask("ls", "net")
    out["latest"] = ask("get", "net-00aa11")
    out["first"] = ask("get", "net-0", "--version", 0)
    out["verify"] = ask("verify")
    out["verify one"] = ask("verify", "net")
    out["diff"] = ask("diff", "net", 1, 2)
    out["diff from zero"] = ask("diff", "net", 0, 2)
    model, state = work / "model.safetensors", work / "state.safetensors"
    out["export"] = ask("export", "net", "--version", 2, "--out", model)
    out["export state"] = ask("export", "net", "--strategy-state", "--out", state)
    out["files"] = [model.read_bytes(), state.read_bytes()]
    return out


def check_answers(out, work):
    versions = out["ls"]["versions"]
    check(out["ls"]["job"] == "net-00aa11" and [v["version"] for v in versions] == [0, 1, 2], out["ls"])
    flat = lambda v: f32([v] * 6 + [10 * v] * 2) + array.array("q", [100 * v]).tobytes()  # noqa: E731
    for v in versions:
        check(v["sha256"] == hashlib.sha256(flat(v["version"])).hexdigest() and v["bytes"] == len(flat(0)), v)
        check(v["parent_sha256"] == (versions[v["version"] - 1]["sha256"] if v["version"] else ""), v)
        check([c["client"] for c in v["contributors"]] == (["client-0", "client-1"] if v["version"] else []), v)
        check(v["metrics"][0]["accuracy"] == 0.25 * v["version"] and len(v["metrics"]) == 1, v)
    check(out["latest"]["version"] == 2 and out["first"]["version"] == 0, "get")
    check(out["latest"]["strategy_state"] == ["momentum"] and out["latest"]["trigger"] == "cohort complete", out["latest"])
    check(out["latest"]["tensors"] == [{"name": "w", "dtype": "F32", "kind": "trainable", "shape": [2, 3]},
                                       {"name": "mean", "dtype": "F32", "kind": "buffer", "shape": [2]},
                                       {"name": "steps", "dtype": "I64", "kind": "counter", "shape": []}], out["latest"]["tensors"])
    check(out["verify"]["sound"] and out["verify"]["findings"] == [] and out["verify"]["versions"] >= 3, out["verify"])
    by_name = {t["name"]: t for t in out["diff"]["tensors"]}
    check(by_name["w"]["max_abs"] == 1 and by_name["w"]["relative_l2"] == 1, by_name)
    check(by_name["mean"]["max_abs"] == 10 and by_name["steps"]["max_abs"] == 100, by_name)
    check(out["diff"]["max_abs"] == 10, out["diff"])
    check({t["name"]: t for t in out["diff from zero"]["tensors"]}["w"]["relative_l2"] is None, "a norm of 0 has no ratio")
    model = read_safetensors(work / "model.safetensors")
    check(list(from_f32(model["w"][2])) == [2.0] * 6 and model["w"][1] == [2, 3] and model["steps"][2] == array.array("q", [200]).tobytes(), model)
    state = read_safetensors(work / "state.safetensors")
    check(state == {"momentum": ("F64", [6], array.array("d", [2.5] * 6).tobytes())}, state)


def offline_errors(work, store):
    where = ("--store", store)
    check("no such job" in run("ls", "other", *where, code=NOT_FOUND).stderr, "unknown job")
    check("version 9" in run("get", "net", "--version", 9, *where, code=NOT_FOUND).stderr, "unknown version")
    run("get", "net", "--version", "-1", *where, code=USAGE)
    run("get", "net", "--version", "x", *where, code=USAGE)
    run("export", "net", *where, code=USAGE)
    run("diff", "net", 0, *where, code=USAGE)
    run("export", "net", "--version", 0, "--strategy-state", "--out", work / "none", *where, code=NOT_FOUND)
    check(not (work / "none").exists(), "a refused export left a file")
    run("export", "net", "--out", work / "no" / "x", *where, code=NOT_FOUND)
    check("not a state store" in run("ls", "--store", work / "nowhere", code=NOT_FOUND).stderr, "no store")
    check("no aggregator" in run("ls", "--server", "127.0.0.1:1", code=UNREACHABLE).stderr, "no server")
    error = json.loads(run("get", "nothing", *where, "--json", code=NOT_FOUND).stdout)["error"]
    check(error["code"] == "NOT_FOUND" and "nothing" in error["message"], error)
    for args in (("ls",), ("get",), ("verify",), ("diff", "net", 0, 1)):   # text for people; JOB left out: the only one
        check(run(*args, *where).stdout, args)


def several_jobs(work):
    store = work / "several"
    subprocess.run([MAKE_STORE, str(store), "net", "nettle", "other"], check=True)
    where = ("--store", store)
    message = run("ls", *where, code=REFUSED).stderr
    check(all(n in message for n in ("net-00aa11", "nettle-00aa11", "other-00aa11")), message)
    check(json.loads(run("ls", "net", *where, "--json").stdout)["job"] == "net-00aa11", "an exact name wins over a beginning")
    check("nettle" in run("ls", "ne", *where, code=REFUSED).stderr, "ambiguous")
    check(json.loads(run("ls", "o", *where, "--json").stdout)["job"] == "other-00aa11", "a beginning")
    check(json.loads(run("verify", *where, "--json").stdout)["versions"] == 9, "verify without a job checks all")


def damaged(work):
    store = work / "damaged"
    subprocess.run([MAKE_STORE, str(store), "net"], check=True)
    # The tensors of version 2 are 6 x 2.0f in a row, wherever RocksDB keeps them.
    needle, hits = f32([2] * 6), 0
    for path in store.iterdir():
        content = path.read_bytes() if path.is_file() else b""
        if needle in content:
            path.write_bytes(content.replace(needle, f32([3] * 6)))
            hits += 1
    check(hits > 0, "the tensors were not found: the test damages nothing")
    done = subprocess.run([str(BIN / "tributary"), "state", "verify", "--store", str(store)], capture_output=True, text=True)
    check(done.returncode != 0, "a damaged store passed: " + done.stdout)
    check(done.returncode == FAILED and "net-00aa11" in done.stdout and "finding" in done.stdout, done.stdout + done.stderr)


def pruned(work):
    """What an aggregator with --keep-versions keeps of a store that it finds, and how the rest is told."""
    subprocess.run([MAKE_STORE, str(work / "store"), "net:9"], check=True)
    with Federation(BIN, work=work, aggregator_flags=["--keep-versions", 2, "--keep-every", 4, "--dedupe-days", 0]) as federation:
        federation.start_aggregator()
        where, end = ("--server", federation.server), time.time() + 60
        while True:
            versions = json.loads(run("ls", "net", *where, "--json").stdout)["versions"]
            if sum(v["pruned_us"] > 0 for v in versions) == 6:
                break
            check(time.time() < end, versions)
            time.sleep(0.05)
        check([v["version"] for v in versions if v["pruned_us"] == 0] == [0, 4, 8, 9], versions)
        check(all(len(v["contributors"]) == 2 for v in versions[1:]), "contributors are kept")
        online = run("export", "net", "--version", 3, "--out", work / "gone", *where, code=NOT_FOUND).stderr
    where = ("--store", work / "store")
    offline = run("export", "net", "--version", 3, "--out", work / "gone", *where, code=NOT_FOUND).stderr
    for message in (online, offline):
        check("version 3" in message and "pruned at" in message and "kept: 0, 4, 8, 9" in message, message)
    check(not (work / "gone").exists(), "a refused export left a file")
    lines = run("ls", "net", *where).stdout.splitlines()[2:]
    check([" pruned " in line for line in lines] == [v not in (0, 4, 8, 9) for v in range(10)], lines)
    check("tensors     pruned at" in run("get", "net", "--version", 3, *where).stdout, "get")
    run("export", "net", "--version", 4, "--out", work / "there", *where)
    check(json.loads(run("verify", *where, "--json").stdout)["sound"], "a store that forgot on purpose is sound")


def main():
    with tempfile.TemporaryDirectory() as folder:
        pruned(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = work / "store"
        subprocess.run([MAKE_STORE, str(store), "net"], check=True)
        offline = answers(work, ("--store", store))
        check_answers(offline, work)
        offline_errors(work, store)
        several_jobs(work)
        damaged(work)
        with Federation(BIN, work=work) as federation:
            federation.start_aggregator()
            check("in use" in run("ls", "--store", store, code=UNREACHABLE).stderr, "a store in use")
            online = answers(work, ("--server", federation.server))
            check_answers(online, work)
            for name in offline:
                check(online[name] == offline[name], f"{name}: offline {offline[name]}, online {online[name]}")
            run("export", "net", "--version", 0, "--strategy-state", "--out", work / "none", "--server", federation.server, code=NOT_FOUND)
            run("ls", "other", "--server", federation.server, code=NOT_FOUND)
            run("get", "net", "--version", 9, "--server", federation.server, code=NOT_FOUND)
    print("state: the same answers from disk and from the aggregator")


main()
