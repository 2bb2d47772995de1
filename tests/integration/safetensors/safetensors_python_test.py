"""The Python package `safetensors` reads our files, and we read its.

usage: safetensors_python_test.py TOOL CACHE. The package is installed once into CACHE (beside numpy); without a package index
the test is skipped with its reason, unless TRIBUTARY_REQUIRE names "safetensors".
"""
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from python_packages import require_safetensors  # noqa: E402

TOOL, CACHE = sys.argv[1], Path(sys.argv[2])


def listed(path):
    """{name: (type, shape, sha256)}, {metadata} as our reader sees them."""
    lines = subprocess.run([TOOL, "list", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    tensors, metadata = {}, {}
    for kind, name, *rest in (line.split("\t") for line in lines):
        if kind == "tensor":
            tensors[name] = (rest[0], tuple(int(n) for n in rest[1].split("x") if n), rest[2])
        else:
            metadata[name] = rest[0]
    return tensors, metadata


def main():
    require_safetensors(CACHE)
    import numpy as np
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file, save, save_file

    names = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
             "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL"}
    random = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        # Its file, every type numpy has, odd sizes, scalars, empty tensors, names that need escapes: our reader.
        every = {f"t.{name}": (random.random((3, 5)) * 100).astype(name) for name in names}
        every.update({"scalar": np.asarray(1.5, np.float32), "empty": np.zeros((0, 4), np.float32), "uni \"ö\" \\": np.ones(1, np.float64)})
        save_file(every, folder / "its.safetensors", metadata={"who": "python", "ö": "\"q\""})
        tensors, metadata = listed(folder / "its.safetensors")
        assert metadata == {"who": "python", "ö": "\"q\""}, metadata
        assert set(tensors) == set(every), set(tensors) ^ set(every)
        for name, array in every.items():
            expected = (names[str(array.dtype)], array.shape, hashlib.sha256(array.tobytes()).hexdigest())
            assert tensors[name] == expected, (name, tensors[name], expected)

        # Its model through our writer: the package reads it back equal.
        for dtype in (np.float32, np.float64):
            model = {"fc.weight": random.random((7, 3)).astype(dtype), "fc.bias": random.random(7).astype(dtype),
                     "odd": random.random(5).astype(dtype), "scale": np.asarray(2.5, dtype), "none": np.zeros((0, 2), dtype),
                     "steps": np.asarray(2**60, np.int64)}
            save_file(model, folder / "model.safetensors")
            subprocess.run([TOOL, "copy", str(folder / "model.safetensors"), str(folder / "ours.safetensors")], check=True)
            back = load_file(folder / "ours.safetensors")
            assert set(back) == set(model)
            for name, array in model.items():
                assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
                assert back[name].tobytes() == array.tobytes(), name
            with safe_open(folder / "ours.safetensors", "numpy") as opened:
                assert opened.metadata() == {"written_by": "tributary", "kind:steps": "counter"}, opened.metadata()

        # What the package refuses, we refuse.
        good = save({"a": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.float32)})
        broken = {"cut": good[:-1], "longer": good + b"x", "hole": good.replace(b"[0,24]", b"[1,24]"),
                  "type": good.replace(b'"F32"', b'"F99"', 1), "shape": good.replace(b'"shape":[6]', b'"shape":[7]'),
                  "header": b"\xff" * 8 + good[8:], "empty": b""}
        for name, content in broken.items():
            assert content != good, name
            (folder / name).write_bytes(content)
            try:
                load_file(folder / name)
                raise AssertionError(f"the package accepted '{name}'")
            except SafetensorError:
                pass
            assert subprocess.run([TOOL, "list", str(folder / name)], capture_output=True).returncode == 1, name
    print("both sides read what the other writes")


main()
