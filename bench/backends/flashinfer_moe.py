"""FlashInfer's CUTLASS MoE module, for bf16 on a Hopper GPU alone, built ahead: 29 objects instead
of some 180.

    python bench/backends/flashinfer_moe.py WORK_DIR → WORK_DIR/fused_moe_90.so, 25 to 38 minutes on
    two cores

vLLM's `--moe-backend flashinfer_cutlass` has nvcc build the whole module at the first start of a
server; 6½ minutes on 16 cores were not enough for it. The package flashinfer-jit-cache holds it
built; this is for where that cannot be had, as on a machine without network. It needs pip, g++ and
strip, no GPU and no CUDA: nvcc comes from PyPI. Copy the file to
flashinfer/data/aot/fused_moe_90/fused_moe_90.so in the server's environment (FlashInfer 0.6.13,
that of vLLM 0.25.1).

The sources of other dtypes are left out, and what would call them is bound lazily: a process that
asks this module for another dtype than bf16 dies of an unknown symbol. A second call goes on from
the objects that are there.
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
    *("flashinfer-python==0.6.13", "apache-tvm-ffi==0.1.9"),
    *(f"nvidia-cuda-{part}=={version}" for part, version in CUDA.items()),
    *("nvidia-nvvm==13.0.88", "nvidia-cublas==13.10.0.20", "nvidia-curand==10.4.5.25"),
]
CUTLASS_KERNELS = "nv_internal/tensorrt_llm/kernels/cutlass_kernels"
COMMON = [
    "fused_moe/cutlass_backend/cutlass_fused_moe_instantiation.cu",
    "fused_moe/cutlass_backend/deepgemm_jit_setup.cu",
    "fused_moe/cutlass_backend/flashinfer_cutlass_fused_moe_binding.cu",
    *(
        f"nv_internal/cpp/common/{name}"
        for name in ("envUtils.cpp", "logger.cpp", "stringUtils.cpp")
    ),
    *(f"nv_internal/cpp/common/{name}" for name in ("tllmException.cpp", "memoryUtils.cu")),
    "nv_internal/tensorrt_llm/kernels/lora/lora.cpp",
    "nv_internal/tensorrt_llm/kernels/preQuantScaleKernel.cu",
    f"{CUTLASS_KERNELS}/cutlass_heuristic.cpp",
    f"{CUTLASS_KERNELS}/fp8_blockscale_gemm/fp8_blockscale_gemm.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_kernels_bf16_bf16.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_mixed_utils.cu",
    f"{CUTLASS_KERNELS}/moe_gemm/moe_gemm_tma_warp_specialized_input.cu",
]
NVCC = [
    *(
        "--compiler-options=-fPIC",
        "--expt-relaxed-constexpr",
        "-static-global-template-stub=false",
        "--threads=1",
    ),
    *("-use_fast_math", "-Xfatbin=-compress-all", "-gencode=arch=compute_90a,code=sm_90a"),
]
CUDA_DEFINES = [
    *(
        f"FLASHINFER_ENABLE_{dtype}"
        for dtype in ("F16", "BF16", "FP8_E4M3", "FP8_E5M2", "FP8_E8M0", "FP4_E2M1")
    ),
    *(
        "ENABLE_BF16",
        "ENABLE_FP8",
        "ENABLE_FP8_BLOCK_SCALE",
        "ENABLE_FP4",
        "USING_OSS_CUTLASS_MOE_GEMM",
    ),
    *(
        "COMPILE_HOPPER_TMA_GEMMS",
        "COMPILE_HOPPER_TMA_GROUPED_GEMMS",
        "CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED",
    ),
    "CUTLASS_ENABLE_GDC_FOR_SM90=1",
]
DEFINES = ["NDEBUG", "Py_LIMITED_API=0x03090000", "_GLIBCXX_USE_CXX11_ABI=1"]
HEADERS = [
    *(
        "csrc/nv_internal",
        "csrc/nv_internal/include",
        "csrc/nv_internal/tensorrt_llm/cutlass_extensions/include",
    ),
    *(
        f"csrc/{CUTLASS_KERNELS}/include",
        f"csrc/{CUTLASS_KERNELS}",
        "cccl/cub",
        "cccl/libcudacxx/include",
    ),
    *(
        "cccl/thrust",
        "include",
        "csrc",
        "cutlass/include",
        "cutlass/tools/util/include",
        "spdlog/include",
    ),
]
INSTANTIATION = re.compile(r"template void sm80_generic_fused_moe.*?;\s*(?=\n|$)", re.DOTALL)


def main() -> int:
    """Fetch, generate, compile, link."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    work = Path(sys.argv[1]).resolve()
    site, objects = work / "site", work / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    if not site.exists():
        _run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(site),
            *PACKAGES,
        )
    csrc = site / "flashinfer" / "data" / "csrc"
    sources = [*(csrc / name for name in COMMON), *_generated(site, work / "generated")]
    with ThreadPoolExecutor(JOBS) as jobs:
        made = list(jobs.map(lambda source: _compile(source, objects, site, work), sources))
    print(_link(made, site, work))
    return 0


def _generated(site: Path, folder: Path) -> Iterator[Path]:
    """FlashInfer's own generator writes every instantiation; those of bf16 alone are taken."""
    for name in (
        "flashinfer",
        "flashinfer.jit",
        "flashinfer.jit.gemm",
        "flashinfer.jit.gemm.cutlass",
    ):
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
    """vLLM's autotuner tries these too; their files mix dtypes, so bf16's share is written anew,
    six to a file."""
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
            spaces = ("tensorrt_llm", "kernels", "cutlass_kernels_oss")
            opened, closed = (
                "".join(f"namespace {name} {{\n" for name in spaces),
                "}\n" * len(spaces),
            )
            file.write_text(
                f"{include}\n{opened}" + "\n".join(parts[first : first + 6]) + f"\n{closed}"
            )
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
        flags += ["-isystem", str(path)]  # nvcc takes it as two words only
    compiler, defines = ["g++", "-fPIC"], DEFINES
    if source.suffix == ".cu":
        compiler, defines = [str(cuda / "bin" / "nvcc"), *NVCC], DEFINES + CUDA_DEFINES
    flags += [f"-D{name}" for name in defines]
    began, unfinished = time.monotonic(), made.with_suffix(".part")
    _run(*compiler, "-std=c++17", "-O3", *flags, "-c", str(source), "-o", str(unfinished))
    print(f"{time.monotonic() - began:4.0f} s {source.name}", flush=True)
    return unfinished.rename(made)


def _link(objects: list[Path], site: Path, work: Path) -> Path:
    """The driver's library is on the GPU machine only: an empty one stands in for it here."""
    driver, out = work / "libcuda.so.1", work / "fused_moe_90.so"
    _run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", str(driver))
    libraries = [str(site / "nvidia" / "cu13" / "lib" / "libcudart.so.13"), str(driver)]
    _run(
        "g++",
        "-shared",
        "-Wl,-z,lazy",
        "-Wl,--no-as-needed",
        "-o",
        str(out),
        *map(str, objects),
        *libraries,
    )
    _run("strip", "--strip-unneeded", str(out))
    return out


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
