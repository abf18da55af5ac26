"""Install steerdiff: the folders at the root become ``steerdiff.<folder>`` through the links in ``src/steerdiff``.

With STEERDIFF_CUDA=1 the fused kernels are built too, against the installed PyTorch (so: without build isolation).
"""

import os
import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup

PARTS = ("models", "samplers", "guidance", "methods", "train", "scripts", "assets")
package_dir, packages = {"": "src"}, find_packages("src")
if not all(Path("src/steerdiff", part, "__init__.py").is_file() for part in PARTS):  # no links here: map the folders
    for part in PARTS:
        package_dir[f"steerdiff.{part}"] = part
        packages += [f"steerdiff.{part}", *(f"steerdiff.{part}.{sub}" for sub in find_packages(part))]


def kernels() -> dict:
    """Return what builds the fused kernels ahead of time."""
    try:
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CUDAExtension
    except ImportError:
        sys.exit("STEERDIFF_CUDA=1 needs an installed PyTorch; install it, then pip install --no-build-isolation -e .")
    if CUDA_HOME is None:
        sys.exit("STEERDIFF_CUDA=1 needs nvcc; install the CUDA toolkit of PyTorch's version and set CUDA_HOME")
    build = runpy.run_path("models/kernels/build.py")
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", build["ARCHITECTURES"])
    extension = CUDAExtension(
        f"steerdiff.models.kernels.{build['NAME']}_{build['tag']()}",
        [os.path.relpath(path) for path in build["sources"]()],
        extra_compile_args={"cxx": build["CXX_FLAGS"], "nvcc": build["NVCC_FLAGS"]},
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
    }


setup(package_dir=package_dir, packages=packages, **(kernels() if os.environ.get("STEERDIFF_CUDA") == "1" else {}))
