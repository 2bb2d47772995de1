"""Python packages that a test compares with, installed once into a folder beside the build."""
import importlib
import os
import subprocess
import sys
from pathlib import Path


def require_safetensors(cache):
    """Makes `import numpy, safetensors.numpy` work. Without a package index the test ends as skipped (77) with the reason, or as
    failed if TRIBUTARY_REQUIRE names "safetensors"."""
    Path(cache).mkdir(parents=True, exist_ok=True)  # before it is a search path: Python remembers a missing folder as missing
    sys.path.insert(0, str(cache))
    try:
        importlib.import_module("safetensors.numpy")
        return
    except ImportError:
        pass
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                           "--target", str(cache), "safetensors>=0.4", "numpy"], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        print(f"the Python package safetensors is not here and cannot be installed: {reason}")
        sys.exit(1 if "safetensors" in os.environ.get("TRIBUTARY_REQUIRE", "").split(",") else 77)
    importlib.invalidate_caches()
