"""Golden numbers of two published privacy accountants: dp-accounting 0.6.0 (Google) and the RDP analysis of opacus 1.6.0 (Meta).

usage: privacy_accountants.py [--check]

Makes a throw-away Python environment with the pinned packages (250 MB, mostly SciPy: too much for scripts/deps.sh, which every build
calls), computes, and writes privacy_accountants.json beside this file; --check compares with that file instead. Of opacus only the one
file that needs no torch is loaded. At fractional orders dp-accounting 0.6 interpolates between integers, so those come from opacus.
"""
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ["numpy==1.26.4", "scipy==1.14.1", "absl-py==2.1.0", "attrs==23.2.0", "dm-tree==0.1.8", "mpmath==1.3.0", "dp-accounting==0.6.0"]

COMPUTE = r'''
import importlib.util, json, sys, zipfile
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

wheel, = sys.argv[1:]
zipfile.ZipFile(wheel).extract("opacus/accountants/analysis/rdp.py", "opacus_rdp")
spec = importlib.util.spec_from_file_location("opacus_rdp", "opacus_rdp/opacus/accountants/analysis/rdp.py")
opacus = importlib.util.module_from_spec(spec)
spec.loader.exec_module(opacus)

ORDERS = [x / 10 for x in range(11, 110)] + list(range(11, 64)) + [128, 256, 512, 1024]
INTEGERS = [float(x) for x in range(2, 64)] + [128, 256, 512, 1024]
poisson, fixed, tree, full = [], [], [], []
for q, z, versions, delta in ((.01, 1, 1000, 1e-5), (.1, 4, 1000, 1e-5), (.001, 1, 10000, 1e-6), (.01, .6, 300, 1e-5), (.3, 2, 100, 1e-6),
                              (.02, 1.5, 20, 1e-5), (.001, 8, 5000, 1e-7)):
    event = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), versions)
    rdp = [float(x) for x in opacus.compute_rdp(q=q, noise_multiplier=z, steps=1, orders=ORDERS)]
    by_rdp, _ = opacus.get_privacy_spent(orders=ORDERS, rdp=[versions * x for x in rdp], delta=delta)
    integer = RdpAccountant(INTEGERS)
    integer.compose(event)
    pld = PLDAccountant(value_discretization_interval=1e-4)
    pld.compose(event)
    poisson.append({"q": q, "z": z, "versions": versions, "delta": delta, "orders": ORDERS, "rdp": rdp, "epsilon_rdp": float(by_rdp),
                    "integer_orders": INTEGERS, "integer_rdp": [float(x) / versions for x in integer.rdp], "epsilon_pld": pld.get_epsilon(delta)})
for q, z, versions, delta in ((.01, 2, 1000, 1e-5), (.1, 4, 200, 1e-5), (.001, 1, 1000, 1e-6), (.25, 8, 50, 1e-5)):
    event = dp_event.SelfComposedDpEvent(dp_event.SampledWithoutReplacementDpEvent(1000000, int(q * 1000000), dp_event.GaussianDpEvent(z)), versions)
    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
    accountant.compose(event)
    fixed.append({"q": q, "z": z, "versions": versions, "delta": delta, "orders": ORDERS, "rdp": [float(x) / versions for x in accountant.rdp],
                  "epsilon_rdp": float(accountant.get_epsilon(delta))})
for z, versions, delta in ((8, 1000, 1e-5), (4, 1, 1e-5), (10, 1024, 1e-7)):
    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_event.SingleEpochTreeAggregationDpEvent(z, versions))
    tree.append({"z": z, "versions": versions, "delta": delta, "orders": ORDERS, "rdp": [float(x) for x in accountant.rdp],
                 "epsilon_rdp": float(accountant.get_epsilon(delta))})
for z, versions, delta in ((8, 10, 1e-5), (2, 1, 1e-6), (30, 500, 1e-5)):
    event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(z), versions)
    rdp, pld = RdpAccountant(ORDERS), PLDAccountant(value_discretization_interval=1e-4)
    rdp.compose(event)
    pld.compose(event)
    full.append({"z": z, "versions": versions, "delta": delta, "epsilon_rdp": float(rdp.get_epsilon(delta)), "epsilon_pld": pld.get_epsilon(delta)})
json.dump({"poisson": poisson, "fixed_size": fixed, "tree": tree, "full": full}, sys.stdout, indent=None)
'''


def compute():
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python3"
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--only-binary=:all:", *PACKAGES], check=True)
        subprocess.run([*pip, "download", "--no-deps", "--dest", folder, "opacus==1.6.0"], check=True)
        wheel, = Path(folder).glob("opacus-*.whl")
        done = subprocess.run([python, "-c", COMPUTE, str(wheel)], check=True, capture_output=True, text=True, cwd=folder)
        return json.loads(done.stdout)


def differences(a, b, where=""):
    if isinstance(a, dict):
        return [line for key in a for line in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}[{i}]")]
    return [] if abs(a - b) <= 1e-9 * max(abs(a), abs(b)) else [f"{where}: {a} against {b}"]


def main():
    numbers = compute()
    numbers = {"made_by": "python3 tests/golden/privacy_accountants.py", "packages": [*PACKAGES, "opacus==1.6.0"], **numbers}
    path = HERE / "privacy_accountants.json"
    if sys.argv[1:] == ["--check"]:
        recorded = json.loads(path.read_text())
        wrong = [line for key in ("poisson", "fixed_size", "tree", "full") for line in differences(recorded[key], numbers[key], key)]
        print("\n".join(wrong) or "the recorded numbers are those of the packages")
        sys.exit(1 if wrong else 0)
    path.write_text(json.dumps(numbers) + "\n")
    print(f"written: {path}")


main()
