"""Make the environment that the peers run in: mmsegmentation, ONNX Runtime and OpenVINO beside the torch of this project.

    python -m tests.benchmarks.peers.environment FOLDER

Everything comes from PyPI. mmsegmentation asks for an mmcv with compiled operators, which has no build for this torch;
EMANet needs none of them, so mmcv-lite serves and `worker.py` puts an empty module in their place. With uv where that is
installed, else with venv and pip.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "mmsegmentation==1.2.2",
    "mmengine==0.10.7",
    "mmcv-lite==2.1.0",
    "opencv-python-headless",
    "ftfy",
    "regex",
    "numpy<2.3",
    "setuptools<81",
    "onnxruntime",
    "openvino",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    torch, vision = (version(name).partition("+")[0] for name in ("torch", "torchvision"))
    packages = (f"torch=={torch}", f"torchvision=={vision}", *PACKAGES)
    python = folder / "bin" / "python"
    if shutil.which("uv"):
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    worker = Path(__file__).with_name("worker.py")
    subprocess.run([str(python), str(worker), "versions"], check=True)


if __name__ == "__main__":
    main()
