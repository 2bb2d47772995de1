"""Several nodes, one job: a top and the nodes below it, real daemons on loopback, clients attached to any of them.

The reproducible model is that of one node, bit for bit; as many partials cross as nodes below the top are used; kill -9 of a node in the
middle of a round, and of the top once it has a node's partial, lose nothing and count nothing twice.

usage: relay_test.py BIN_DIR [--points]      with --points also kill -9 at named points, where they are compiled in
"""
import json
import signal
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from harness import Federation, known_hash, write_known_files  # noqa: E402

WEIGHTS = [1.0, 3.0, 600.0, 17.5, 0.25]
POINTS = ["relay_before_push", "relay_after_push", "relay_before_adopt"]
QUICK = ["--heartbeat-s", "0.5", "--journal-s", "0.1"]


class Nodes:
    """A top and nodes below it; each is a Federation with a store of its own."""

    def __init__(self, bin_dir, below=("a", "b")):
        self.bin_dir = bin_dir
        self.top = Federation(bin_dir, aggregator_flags=["--relay-nodes", ",".join(below), "--metrics", "127.0.0.1:0", *QUICK])
        self.below = {name: Federation(bin_dir) for name in below}

    def __enter__(self):
        self.top.start_aggregator()
        for name, node in self.below.items():
            node.aggregator_flags = ["--node", name, "--upstream", self.top.server, *QUICK]
            node.start_aggregator()
        self.wait(lambda: sum(n["attached"] for n in self.shown()["nodes"]) == len(self.below), "the nodes attach")
        return self

    def __exit__(self, *unused):
        for node in self.below.values():
            node.close()
        self.top.close()

    def shown(self):
        return self.top.cli("nodes", "show")

    def wait(self, condition, what, timeout=30):
        end = time.time() + timeout
        while not condition():
            assert time.time() < end, f"{what}: not within {timeout} s\n" + self.logs()
            time.sleep(0.05)

    def logs(self):
        return "\n".join([self.top.log("aggregator.log"), *(f"-- {name}\n" + node.log("aggregator.log") for name, node in self.below.items())])

    def start_clients(self, folder, where, train_ms=lambda i: 0):
        """where: for each site the federation that it attaches to."""
        for i, node in enumerate(where):
            node.start_client(f"site-{i}", "--learner", "file", "--updates", folder, "--weight", WEIGHTS[i], "--train-ms", train_ms(i),
                              "--ledger", node.work / f"ledger-{i}")
        expected = {name: sum(w is node for w in where) for name, node in self.below.items()}
        self.wait(lambda: {n["name"]: n["clients"] for n in self.shown()["nodes"]} == expected, "the clients attach")
        self.wait(lambda: len(self.top.cli("clients", "ls")["clients"]) >= sum(w is self.top for w in where), "the top's clients attach")

    def submit(self, folder, versions=1, placement="worstfit", extra=""):
        return self.top.submit(
            f"name: relay\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: {len(WEIGHTS)}}}\nstop: {{versions: {versions}}}\n"
            f"reproducible: true\nhierarchy: {{placement: {placement}}}\n{extra}")

    def wait_done(self, job):
        shown = self.top.wait_job(job, timeout=60)
        assert shown["state"] == "done", (shown, self.logs())
        return shown


def ledger(node, i):
    path = node.work / f"ledger-{i}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def committed(node, i):
    """The updates it was told are in a version. It may be told twice: in the answer to its Attach, and when the version is adopted just then."""
    return {line["update"] for line in ledger(node, i) if line["state"] == "committed"}


def contributors(federation, job, version=1):
    return sorted(c["client"] for c in federation.cli("state", "get", job, "--version", version)["contributors"])


def check_stores(nodes, job, sha):
    """Every node that took part has the version that the top has, and an audit finds nothing."""
    for node in [nodes.top, *nodes.below.values()]:
        shown = node.cli("jobs", "show", job)
        assert shown["state"] == "done" and shown["model_sha256"] == sha, (shown, nodes.logs())


def one_node_or_several(bin_dir, folder, reference):
    with Nodes(bin_dir) as nodes:
        top, a, b = nodes.top, nodes.below["a"], nodes.below["b"]
        where = [top, top, a, a, b]
        nodes.start_clients(folder, where)
        job = nodes.submit(folder)
        shown = nodes.wait_done(job)
        assert shown["updates_committed"] == len(WEIGHTS), shown
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert top.log("aggregator.log", 1000).count(" brought ") == 2, "one partial for each node below that is used\n" + nodes.logs()
        nodes.wait(lambda: all(len(committed(node, i)) == 1 for i, node in enumerate(where)), "COMMITTED reaches every client")
        nodes.wait(lambda: all(n.cli("jobs", "show", job)["state"] == "done" for n in (a, b)), "the nodes hear of the end")
        check_stores(nodes, job, reference)
        assert contributors(top, job) == contributors(a, job) == [f"site-{i}" for i in range(5)]
        # Several versions, and best fit: everything fits the top's capacity of 20, but only two clients are there, so nodes fill up in turn.
        job = nodes.submit(folder, versions=4, placement="bestfit")
        shown = nodes.wait_done(job)
        assert shown["updates_committed"] == 4 * len(WEIGHTS), shown
        nodes.wait(lambda: all(n.cli("jobs", "show", job)["state"] == "done" for n in (a, b)), "the nodes hear of the end")
        for node in [a, b, top]:
            node.kill_aggregator()
            findings = node.cli("state", "verify", "--store", node.work / "store", server=False)
            assert findings["findings"] == [], findings


def killed_node(bin_dir, folder, reference):
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        where = [top, top, a, a, a]
        nodes.start_clients(folder, where)
        a.clients["site-4"].send_signal(signal.SIGSTOP)  # the node cannot send before it
        job = nodes.submit(folder)
        nodes.wait(lambda: a.cli("jobs", "ls")["jobs"] and a.cli("jobs", "show", job)["clients_in"] == 2, "two of its updates are in")
        a.kill_aggregator()
        a.start_aggregator()
        a.clients["site-4"].send_signal(signal.SIGCONT)
        shown = nodes.wait_done(job)
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert shown["updates_committed"] == len(WEIGHTS), shown
        assert contributors(top, job) == [f"site-{i}" for i in range(5)]
        nodes.wait(lambda: all(len(committed(node, i)) == 1 for i, node in enumerate(where)), "COMMITTED reaches every client")


def killed_at(point, bin_dir, folder, reference):
    """kill -9 where a partial is about to go up, has gone up, and where a version is about to be adopted."""
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        a.kill_aggregator()
        a.start_aggregator(env={"TRIBUTARY_CRASH": f"{point}:1"})
        where = [top, top, a, a, a]
        nodes.start_clients(folder, where)
        job = nodes.submit(folder)
        nodes.wait(lambda: a.aggregator.poll() is not None, f"the node reaches {point}")
        assert a.aggregator.returncode == -signal.SIGKILL, (point, a.aggregator.returncode, nodes.logs())
        a.start_aggregator()
        shown = nodes.wait_done(job)
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert contributors(top, job) == [f"site-{i}" for i in range(5)]
        nodes.wait(lambda: all(len(committed(node, i)) == 1 for i, node in enumerate(where)), "COMMITTED reaches every client")
        nodes.wait(lambda: a.cli("jobs", "show", job)["state"] == "done", "the node hears of the end")
        check_stores(nodes, job, reference)


def killed_top(bin_dir, folder, reference):
    """The top had the partial when it died: its node still has it, and sends it to the top's next run, whose fence is another."""
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        where = [top, top, a, a, a]
        nodes.start_clients(folder, where, train_ms=lambda i: 1200 if i == 0 else 0)
        job = nodes.submit(folder)
        nodes.wait(lambda: " brought 3 updates" in top.log("aggregator.log", 1000), "the partial is there")
        shown = nodes.shown()
        assert [(n["name"], n["attached"], n["clients"], n["asked"]) for n in shown["nodes"]] == [("a", True, 3, 0)], shown["nodes"]
        assert [j["node_partials"] for j in shown["jobs"]] == [1], shown["jobs"]
        with urllib.request.urlopen(f"http://{shown['metrics']}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        for line in ('tributary_node_attached{node="a"} 1', 'tributary_node_clients{node="a"} 3', f'tributary_node_partials_total{{job="{job}"}} 1'):
            assert line in metrics, (line, metrics)
        top.kill_aggregator()
        top.start_aggregator()
        shown = nodes.wait_done(job)
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert contributors(top, job) == [f"site-{i}" for i in range(5)]
        nodes.wait(lambda: all(len(committed(node, i)) == 1 for i, node in enumerate(where)), "COMMITTED reaches every client")


def lost_node(bin_dir, folder):
    """A node that does not come back: what it was asked for is asked of others, and nothing of it is counted."""
    with Nodes(bin_dir, below=("a", "b")) as nodes:
        top, a, b = nodes.top, nodes.below["a"], nodes.below["b"]
        where = [top, top, a, a, b]
        nodes.start_clients(folder, where, train_ms=lambda i: 60_000 if i in (2, 3) else 0)
        job = top.submit(
            f"name: relay\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: 3}}\nstop: {{versions: 1}}\nreproducible: true\n"
            f"hierarchy: {{placement: worstfit}}\n")
        nodes.wait(lambda: a.cli("jobs", "ls")["jobs"], "the node joins")
        a.aggregator.send_signal(signal.SIGKILL)
        a.aggregator.wait()
        shown = nodes.wait_done(job)
        assert shown["updates_committed"] == 3, shown
        assert contributors(top, job) == ["site-0", "site-1", "site-4"]


def late_clients(bin_dir, folder, reference):
    """Clients that come to a node one by one after its partial went up, and nobody else to ask: all send again, and every update counts once."""
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        nodes.start_clients(folder, [top, top, a])
        job = nodes.submit(folder)
        nodes.wait(lambda: " brought 1 updates" in top.log("aggregator.log", 1000), "the partial of the one client is there")
        for i in (3, 4):
            a.start_client(f"site-{i}", "--learner", "file", "--updates", folder, "--weight", WEIGHTS[i], "--ledger", a.work / f"ledger-{i}")
            nodes.wait(lambda i=i: nodes.shown()["nodes"][0]["clients"] == i - 1, "the client attaches")
        shown = nodes.wait_done(job)
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert contributors(top, job) == [f"site-{i}" for i in range(5)]
        assert " brought 3 updates" in top.log("aggregator.log", 1000), nodes.logs()
        where = [top, top, a, a, a]
        nodes.wait(lambda: all(len(committed(node, i)) == 1 for i, node in enumerate(where)), "COMMITTED reaches every client")


def lost_client(bin_dir, folder, reference):
    """A client of a node dies in mid-task and nobody there can take its place: the node sends what it has, and the rest comes from elsewhere."""
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        nodes.start_clients(folder, [top, top, a, a, a], train_ms=lambda i: 60_000 if i == 4 else 0)
        job = nodes.submit(folder)
        nodes.wait(lambda: a.cli("jobs", "ls")["jobs"] and a.cli("jobs", "show", job)["clients_in"] == 2, "two of its updates are in")
        a.clients["site-4"].kill()
        nodes.wait(lambda: " brought 2 updates" in top.log("aggregator.log", 1000), "the node sends what it has")
        top.start_client("site-4", "--learner", "file", "--updates", folder, "--weight", WEIGHTS[4], "--ledger", top.work / "ledger-4")
        shown = nodes.wait_done(job)
        assert shown["model_sha256"] == reference, f"{shown['model_sha256']}, expected {reference}\n" + nodes.logs()
        assert contributors(top, job) == [f"site-{i}" for i in range(5)]


def lagging_node(bin_dir, folder):
    """A node that was away for many versions adopts them all, those whose tensors the top has forgotten by their manifests."""
    with Nodes(bin_dir, below=("a",)) as nodes:
        top, a = nodes.top, nodes.below["a"]
        top.kill_aggregator()
        top.aggregator_flags += ["--keep-versions", "2"]
        top.start_aggregator()
        where = [top, top, top, a, a]
        nodes.start_clients(folder, where, train_ms=lambda i: 80)  # the job outlives the look at it
        job = top.submit(
            f"name: relay\nmodel: {{tensors: {folder}/model.safetensors}}\ncohort: {{size: 3}}\nstop: {{versions: 40}}\nreproducible: true\n"
            f"hierarchy: {{placement: worstfit}}\n")
        nodes.wait(lambda: a.cli("jobs", "ls")["jobs"] and a.cli("jobs", "show", job)["version"] >= 1, "the node takes part")
        a.kill_aggregator()
        shown = nodes.wait_done(job)
        lag = shown["version"] - a.cli("state", "get", job, "--store", a.work / "store", server=False)["version"]
        assert lag > 3, lag
        a.start_aggregator()
        nodes.wait(lambda: a.cli("jobs", "show", job)["state"] == "done", "the node catches up")
        check_stores(nodes, job, shown["model_sha256"])
        versions = a.cli("state", "ls", job)["versions"]
        assert any(v["pruned_us"] for v in versions[-lag:-2]), versions
        a.kill_aggregator()
        findings = a.cli("state", "verify", "--store", a.work / "store", server=False)
        assert findings["findings"] == [], findings


def main():
    bin_dir = Path(sys.argv[1])
    with Federation(bin_dir) as scratch:
        folder = scratch.work / "files"
        folder.mkdir()
        write_known_files(folder, len(WEIGHTS))
        reference = known_hash(scratch, folder, WEIGHTS)
        for case in (one_node_or_several, killed_node, killed_top, late_clients, lost_client):
            begin = time.time()
            case(bin_dir, folder, reference)
            print(f"{case.__name__}: {time.time() - begin:.1f} s", flush=True)
        for point in POINTS if "--points" in sys.argv[2:] else ():
            begin = time.time()
            killed_at(point, bin_dir, folder, reference)
            print(f"killed_at {point}: {time.time() - begin:.1f} s", flush=True)
        for case in (lost_node, lagging_node):
            begin = time.time()
            case(bin_dir, folder)
            print(f"{case.__name__}: {time.time() - begin:.1f} s", flush=True)
    print(f"several nodes, one model: {reference[:16]}…")


if __name__ == "__main__":
    main()
