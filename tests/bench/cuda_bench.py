"""Speed of the CUDA kernels on this machine's GPU, each beside the same written in PyTorch operations, in one process.

    cuda_bench.py [--library FILE] [--elements N] [--only NAME]     prints one JSON document

Needs a Python with torch and an NVIDIA GPU. Without --library the kernels are compiled with nvcc from this tree.

privatise: Δ = fresh − loaded, norm, clip, Gaussian noise, codec. Bytes are what two passes must move: 8 read for the norm, 8 read and
the code written for the rest. `of_copy` is those bytes over the time, by the bandwidth of a device-to-device copy (bytes read and
written) measured between the runs. Times are medians over CUDA events, inputs several times the L2 cache.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FORMATS = {"f32": 0, "bf16": 1, "int8": 2, "int4": 3}
NOISES = {"none": 0, "philox": 1, "chacha20": 2}


def build(folder):
    """Compiles the kernels with nvcc for this GPU."""
    library = os.path.join(folder, "libtributary_kernels.so")
    major, minor = torch.cuda.get_device_capability()
    sources = [os.path.join(ROOT, "client/cuda", name) for name in sorted(os.listdir(os.path.join(ROOT, "client/cuda"))) if name.endswith(".cu")]
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{major}{minor}", "-std=c++20", "-O3", "-fmad=false", "-I", ROOT, "-o", library,
               os.path.join(ROOT, "tests/bench/cuda_kernels.cu"), *sources]
    subprocess.run(command, check=True)
    return library


def load(path):
    library = ctypes.CDLL(path)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.trib_privatise.argtypes = [pointer, pointer, size, ctypes.c_double, ctypes.c_int, ctypes.c_double, ctypes.c_int, pointer, pointer, pointer, pointer]
    library.trib_differences.argtypes = [pointer, pointer]
    library.trib_norm.argtypes = [pointer, pointer, size, pointer, pointer]
    for name in ("trib_code_bytes", "trib_scratch_doubles", "trib_norm_index"):
        getattr(library, name).restype = size
    library.trib_code_bytes.argtypes = [ctypes.c_int, size]
    library.trib_scratch_doubles.argtypes = [size]
    library.trib_norm_index.argtypes = [size]
    return library


def seconds(function, repeats=20, warm=3):
    """Median time of one call on the device."""
    for _ in range(warm):
        function()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def privatise_in_torch(fresh, loaded, clip, deviation, codec):
    """The same steps as a user of PyTorch writes them. Its noise is single precision and not reproducible elsewhere."""
    delta = fresh - loaded
    norm = torch.linalg.vector_norm(delta)
    delta = delta * torch.clamp(clip / norm, max=1.0)
    if deviation > 0:
        delta = delta + deviation * torch.randn_like(delta)
    if codec == "f32":
        return delta
    if codec == "bf16":
        return delta.to(torch.bfloat16)
    levels = 127 if codec == "int8" else 7
    blocks = delta.view(-1, 256)
    scale = blocks.abs().amax(1, keepdim=True) / levels
    codes = torch.floor(blocks / scale + torch.rand_like(blocks)).clamp_(-levels, levels).to(torch.int8)
    if codec == "int8":
        return scale, codes
    return scale, (codes[:, :128] & 0x0F) | (codes[:, 128:] << 4)


def bench_privatise(library, elements):
    device = torch.device("cuda")
    torch.manual_seed(1)
    loaded = torch.randn(elements, device=device) * 0.1
    fresh = loaded + torch.randn(elements, device=device) * 0.01
    exact = torch.linalg.vector_norm(fresh - loaded, dtype=torch.float64).item()
    clip, deviation = exact / 2, 0.004
    scratch = torch.empty(library.trib_scratch_doubles(elements), dtype=torch.float64, device=device)
    failed = torch.zeros(1, dtype=torch.int32, device=device)
    out = torch.empty(elements * 4, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream().cuda_stream
    source = torch.randn(elements * 2, device=device)
    target = torch.empty_like(source)

    def copy_rate():
        return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))

    def check(code):
        if code != 0:
            sys.exit(f"CUDA error {code}")

    differences = torch.zeros(2, dtype=torch.int64, device=device)
    check(library.trib_differences(differences.data_ptr(), stream))
    if differences.any():
        sys.exit(f"rounded otherwise than to nearest: the roots of {differences[0]} of 2^32 words, the reciprocals of {differences[1]} of 2^25 numbers")
    rows = []
    norm_s = seconds(lambda: check(library.trib_norm(fresh.data_ptr(), loaded.data_ptr(), elements, scratch.data_ptr(), stream)))
    got = scratch[library.trib_norm_index(elements)].sqrt().item()
    if abs(got / exact - 1) > 1e-9:
        sys.exit(f"the norm is {got}, expected {exact}")
    copies = [copy_rate()]
    rows.append({"pass": "norm", "ms": norm_s * 1e3, "of_copy": 8 * elements / norm_s / copies[-1]})
    compiled = torch.compile(privatise_in_torch, dynamic=False)
    for codec, format_number in FORMATS.items():
        for noise, noise_number in NOISES.items():
            def ours():
                check(library.trib_privatise(fresh.data_ptr(), loaded.data_ptr(), elements, clip, noise_number, deviation, format_number, out.data_ptr(),
                                             scratch.data_ptr(), failed.data_ptr(), stream))
            ours_s = seconds(ours)
            copies.append(copy_rate())
            moved = 16 * elements + library.trib_code_bytes(format_number, elements)
            row = {"codec": codec, "noise": noise, "ms": ours_s * 1e3, "gb_per_s": moved / ours_s / 1e9, "of_copy": moved / ours_s / copies[-1]}
            if noise != "chacha20":
                arguments = (fresh, loaded, clip, deviation if noise == "philox" else 0.0, codec)
                row["torch_ms"] = seconds(lambda: privatise_in_torch(*arguments), repeats=5, warm=2) * 1e3
                row["times_torch"] = row["torch_ms"] / row["ms"]
                try:
                    row["torch_compiled_ms"] = seconds(lambda: compiled(*arguments), repeats=5, warm=3) * 1e3
                    row["times_torch_compiled"] = row["torch_compiled_ms"] / row["ms"]
                except Exception as error:  # the compiler needs a C++ compiler that some machines lack
                    row["torch_compiled_error"] = str(error).splitlines()[0]
            rows.append(row)
    return {"elements": elements, "copy_gb_per_s": statistics.median(copies) / 1e9, "copy_spread_gb_per_s": [min(copies) / 1e9, max(copies) / 1e9],
            "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library")
    parser.add_argument("--elements", type=int, default=1 << 28)
    parser.add_argument("--only", choices=["privatise"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    with tempfile.TemporaryDirectory() as folder:
        library = load(arguments.library or build(folder))
        result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        if arguments.only in (None, "privatise"):
            result["privatise"] = bench_privatise(library, arguments.elements)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
