"""Builds FlashInfer's CUTLASS MoE module ahead of time, for bf16 on a Hopper GPU only: 29 object
files instead of about 180.

    python bench/backends/flashinfer_moe.py WORK_DIR

It writes WORK_DIR/fused_moe_90.so, in 25 to 38 minutes on two cores.

With `--moe-backend flashinfer_cutlass`, vLLM has nvcc build the whole module the first time a
server starts; 6½ minutes on 16 cores were not enough for that. The package flashinfer-jit-cache
contains the built module. This script is for machines that cannot install it, for example because
they have no network. It needs pip, g++ and strip, but no GPU and no CUDA: nvcc comes from PyPI.
Copy the file to flashinfer/data/aot/fused_moe_90/fused_moe_90.so in the server's environment
(FlashInfer 0.6.13, the version of vLLM 0.25.1).

The sources for other dtypes are left out, and calls to them are bound lazily: a process that asks
this module for a dtype other than bf16 dies of an unknown symbol. A second call reuses the object
files that are already there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

JOBS = 2
CUDA = {
    "nvcc": "13.0.88",
    "crt": "13.0.88",
    "cccl": "13.0.85",
    "runtime": "13.0.96",
    "nvrtc": "13.0.88",
}
PACKAGES = [
    "flashinfer-python==0.6.13",
    "apache-tvm-ffi==0.1.9",
    *(f"nvidia-cuda-{part}=={version}" for part, version in CUDA.items()),
    "nvidia-nvvm==13.0.88",
    "nvidia-cublas==13.10.0.20",
    "nvidia-curand==10.4.5.25",
]
COMMON_CPP = "nv_internal/cpp/common"
KERNELS = "nv_internal/tensorrt_llm/kernels"
CUTLASS_KERNELS = f"{KERNELS}/cutlass_kernels"
COMMON = [
    "fused_moe/cutlass_backend/cutlass_fused_moe_instantiation.cu",
    "fused_moe/cutlass_backend/deepgemm_jit_setup.cu",
    "fused_moe/cutlass_backend/flashinfer_cutlass_fused_moe_binding.cu",
    f"{COMMON_CPP}/envUtils.cpp",
    f"{COMMON_CPP}/logger.cpp",
    f"{COMMON_CPP}/stringUtils.cpp",
    f"{COMMON_CPP}/tllmException.cpp",
    f"{COMMON_CPP}/memoryUtils.cu",
    f"{KERNELS}/lora/lora.cpp",
    f"{KERNELS}/preQuantScaleKernel.cu",
    f"{CUTLASS_KERNELS}/cutlass_heuristic.cpp",
    f"{CUTLASS_KERNELS}/fp8_blockscale_gemm/fp8_blockscale_gemm.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_kernels_bf16_bf16.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_mixed_utils.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_tma_warp_specialized_input.cu",
]
NVCC = [
    "--compiler-options=-fPIC",
    "--expt-relaxed-constexpr",
    "-static-global-template-stub=false",
    "--threads=1",
    "-use_fast_math",
    "-Xfatbin=-compress-all",
    "-gencode=arch=compute_90a,code=sm_90a",
]
DTYPES = ["F16", "BF16", "FP8_E4M3", "FP8_E5M2", "FP8_E8M0", "FP4_E2M1"]
CUDA_DEFINES = [
    *(f"FLASHINFER_ENABLE_{dtype}" for dtype in DTYPES),
    "ENABLE_BF16",
    "ENABLE_FP8",
    "ENABLE_FP8_BLOCK_SCALE",
    "ENABLE_FP4",
    "USING_OSS_CUTLASS_MOE_GEMM",
    "COMPILE_HOPPER_TMA_GEMMS",
    "COMPILE_HOPPER_TMA_GROUPED_GEMMS",
    "CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED",
    "CUTLASS_ENABLE_GDC_FOR_SM90=1",
]
DEFINES = ["NDEBUG", "Py_LIMITED_API=0x03090000", "_GLIBCXX_USE_CXX11_ABI=1"]
HEADERS = [
    "csrc/nv_internal",
    "csrc/nv_internal/include",
    "csrc/nv_internal/tensorrt_llm/cutlass_extensions/include",
    f"csrc/{CUTLASS_KERNELS}/include",
    f"csrc/{CUTLASS_KERNELS}",
    "cccl/cub",
    "cccl/libcudacxx/include",
    "cccl/thrust",
    "include",
    "csrc",
    "cutlass/include",
    "cutlass/tools/util/include",
    "spdlog/include",
]
PACKAGES_WITHOUT_INIT = (
    "flashinfer",
    "flashinfer.jit",
    "flashinfer.jit.gemm",
    "flashinfer.jit.gemm.cutlass",
)
SPACES = ("tensorrt_llm", "kernels", "cutlass_kernels_oss")
OPENED = "".join(f"namespace {name} {{\n" for name in SPACES)
CLOSED = len(SPACES) * "}\n"
INSTANTIATION = re.compile(r"template void sm80_generic_fused_moe.*?;\s*(?=\n|$)", re.DOTALL)


def main() -> int:
    """Fetch, generate, compile, link."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    work = Path(sys.argv[1]).resolve()
    site, objects = work / "site", work / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    if not site.exists():
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps")
        _run(*pip, "--target", str(site), *PACKAGES)
    csrc = site / "flashinfer" / "data" / "csrc"
    sources = [*(csrc / name for name in COMMON), *_generated(site, work / "generated")]
    with ThreadPoolExecutor(JOBS) as jobs:
        made = list(jobs.map(lambda source: _compile(source, objects, site, work), sources))
    print(_link(made, site, work))
    return 0


def _generated(site: Path, folder: Path) -> Iterator[Path]:
    """FlashInfer's own generator writes every instantiation; only those for bf16 are used."""
    for name in PACKAGES_WITHOUT_INIT:
        package = ModuleType(name)  # their own __init__ would import torch
        package.__path__ = [str(site.joinpath(*name.split(".")))]
        sys.modules[name] = package
    checks = ModuleType("flashinfer.jit.cpp_ext")
    vars(checks).update(is_cuda_version_at_least=lambda version: True)  # nvcc is CUDA's, above
    sys.modules[checks.__name__] = checks
    sys.path.insert(0, str(site))
    from flashinfer.jit.gemm.cutlass.generate_kernels import generate_gemm_operations

    folder.mkdir(exist_ok=True)
    generate_gemm_operations(folder, "90;90-real")
    for file in sorted((folder / "gemm_grouped" / "90").glob("*.cu")):
        text = file.read_text()
        if "__nv_bfloat16" in text and not re.search(r"\bhalf\b|__nv_fp[48]|uint4b_t", text):
            yield file
    yield from _sm80(folder)


def _sm80(folder: Path) -> Iterator[Path]:
    """The SM80 kernels, which vLLM's autotuner tries too. Their files mix dtypes, so the
    instantiations for bf16 are written to new files, six to a file."""
    shares: dict[tuple[str, str], list[str]] = {}
    for file in sorted((folder / "gemm_grouped" / "80").glob("*.cu")):
        text = file.read_text()
        parts = [
            part
            for part in INSTANTIATION.findall(text)
            if "bfloat16" in part and "half" not in part
        ]
        include, rows = text.partition("\n")[0], file.name.partition("_M")[2].partition("_")[0]
        shares.setdefault((include, rows), []).extend(parts)
    for (include, rows), parts in shares.items():
        for first in range(0, len(parts), 6):
            file = folder / f"sm80_bf16_M{rows}_{first}.cu"
            body = "\n".join(parts[first : first + 6])
            file.write_text(f"{include}\n{OPENED}{body}\n{CLOSED}")
            yield file


def _compile(source: Path, objects: Path, site: Path, work: Path) -> Path:
    made = objects / f"{source.parent.name}_{source.name}.o"
    if made.exists():
        return made
    cuda, ffi = site / "nvidia" / "cu13", site / "tvm_ffi"
    system = [
        cuda / "include",
        ffi / "include",
        ffi / "3rdparty/dlpack/include",
        sysconfig.get_path("include"),
    ]
    headers = [*(site / "flashinfer" / "data" / name for name in HEADERS), work / "generated"]
    flags = [f"-I{path}" for path in headers]
    for path in system:
        flags += ["-isystem", str(path)]  # nvcc wants two separate arguments
    compiler, defines = ["g++", "-fPIC"], DEFINES
    if source.suffix == ".cu":
        compiler, defines = [str(cuda / "bin" / "nvcc"), *NVCC], DEFINES + CUDA_DEFINES
    flags += [f"-D{name}" for name in defines]
    began, unfinished = time.monotonic(), made.with_suffix(".part")
    _run(*compiler, "-std=c++17", "-O3", *flags, "-c", str(source), "-o", str(unfinished))
    print(f"{time.monotonic() - began:4.0f} s {source.name}", flush=True)
    return unfinished.rename(made)


def _link(objects: list[Path], site: Path, work: Path) -> Path:
    """An empty libcuda.so.1 stands in for the driver's library, which only GPU machines have."""
    driver, out = work / "libcuda.so.1", work / "fused_moe_90.so"
    _run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", str(driver))
    libraries = [str(site / "nvidia" / "cu13" / "lib" / "libcudart.so.13"), str(driver)]
    flags = ["-shared", "-Wl,-z,lazy", "-Wl,--no-as-needed", "-o", str(out)]
    _run("g++", *flags, *map(str, objects), *libraries)
    _run("strip", "--strip-unneeded", str(out))
    return out


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
