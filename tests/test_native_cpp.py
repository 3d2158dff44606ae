# SPDX-License-Identifier: Apache-2.0
"""The C++ test programs of tests/cpp, without PyTorch: index arithmetic, and the CPU kernels on guarded memory.

The kernels are tested as they ship where the library in use was built in this tree (its object files are then at hand),
else compiled here. Slow ones: under the sanitizers; with tensors beyond 2^31 elements; and with bugs planted in a copy
of the sources, each of which the programs must notice: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from conftest import REQUIRED
from swin_fast.backends import native

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PROGRAMS = ROOT / "tests" / "cpp"

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16") if X86 else ("scalar",)
BASE_SOURCES = ("isa", "window_attention")
SOURCES = (*BASE_SOURCES, *(f"kernels_{isa}" for isa in ISAS))

THREADS = ("-fsanitize=thread", "-O1", "-g1")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1")
# Every line of the kernels is inlined many times over, which makes some checks of each memory access cost minutes of
# compilation: null pointers and object sizes, which the guard pages cover as well, and red zones around local arrays,
# whose indices are still checked.
SANITIZE_KERNELS = (*SANITIZE, "-fno-sanitize=null,object-size,pointer-overflow", "--param", "asan-stack=0")


def absent(reason: str) -> None:
    """Skips, or fails where the cpu backend is required."""
    if "cpu" in REQUIRED:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def isa_flags(isa: str) -> list[str]:
    """The flags of one path, from the one place where they stand."""
    text = (ROOT / "CMakeLists.txt").read_text()

    def words(name: str) -> list[str]:
        found = re.search(rf"^set\({name}_flags (.*)\)$", text, re.MULTILINE)
        assert found, f"CMakeLists.txt sets no {name}_flags"
        flags = []
        for word in found[1].split():
            nested = re.fullmatch(r"\$\{(\w+)_flags\}", word)
            flags += words(nested[1]) if nested else [word]
        return flags

    return [] if isa == "scalar" else words(isa)


class Toolchain:
    """Compiles and links in one folder, for the whole session; an object is compiled once."""

    def __init__(self, compiler: list[str], folder: Path) -> None:
        self.compiler = compiler
        self.folder = folder

    def call(self, *arguments: str | Path) -> None:
        command = [*self.compiler, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            pytest.fail(f"{shlex.join(command)}\n{done.stderr[-4000:]}", pytrace=False)

    def object(self, source: Path, folder: str, *flags: str) -> Path:
        target = self.folder / folder / f"{source.stem}.o"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            self.call("-std=c++17", *flags, "-c", source, "-o", target)
        return target

    def kernel_object(self, name: str, folder: str, *flags: str, csrc: Path = CSRC) -> Path:
        isa = isa_flags(name.removeprefix("kernels_")) if name not in BASE_SOURCES else []
        x86 = ["-DSWIN_FAST_X86=1"] if X86 else []
        # -w: some gcc warn about their own intrinsics. The build of the library has the warnings on.
        return self.object(csrc / "cpu" / f"{name}.cpp", folder, "-w", *x86, *isa, *flags)

    def link(self, name: str, *objects: Path, flags: tuple[str, ...] = ()) -> Path:
        program = self.folder / name
        self.call(*flags, *objects, "-pthread", "-o", program)
        return program

    def driver_objects(self, folder: str, *flags: str) -> list[Path]:
        sources = ("test_window_attention", "guarded_buffer", "harness", "oracle")
        return [self.object(PROGRAMS / f"{name}.cpp", folder, *flags) for name in sources]

    @cached_property
    def driver(self) -> list[Path]:
        """The driver of the kernels, on its own: linked with kernels of any build."""
        return self.driver_objects("driver", "-O3")

    @cached_property
    def kernels(self) -> dict[str, Path]:
        """The object files of the library in use, or the same sources compiled here."""
        for built in (ROOT / "build").glob(f"cmake-*/{native.CPU_LIBRARY.name}"):
            folder = built.parent / "CMakeFiles" / "swin_fast_cpu.dir" / "csrc" / "cpu"
            shipped = {name: folder / f"{name}.cpp.o" for name in SOURCES}
            in_use = native.CPU_LIBRARY.is_file() and built.read_bytes() == native.CPU_LIBRARY.read_bytes()
            if in_use and all(path.is_file() for path in shipped.values()):
                return shipped
        return {name: self.kernel_object(name, "kernels", "-O2") for name in SOURCES}

    @cached_property
    def program(self) -> Path:
        return self.link("test_window_attention", *self.driver, *self.kernels.values())

    @cached_property
    def isas(self) -> list[str]:
        """The paths that this CPU runs, narrowest first."""
        return run(self.program, "--list").stdout.split()


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Where the sanitizers own the memory, it arrives full of NaN as it does without them (nan_memory.h).
    options = f"{os.environ.get('ASAN_OPTIONS', '')}:max_malloc_fill_size={1 << 40}:malloc_fill_byte=255"
    environment = {**os.environ, "ASAN_OPTIONS": options}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=600, env=environment
    )


def check(program: Path, *arguments: str) -> None:
    done = run(program, *arguments)
    if done.returncode != 0:
        command = shlex.join([program.name, *arguments])
        pytest.fail(
            f"{command}: exit status {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-6000:]}", pytrace=False
        )
    last = done.stdout.splitlines()[-1]
    print(last)
    assert "checks passed" in last


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not compiler or shutil.which(compiler[0]) is None:
        absent(f"no C++ compiler: {compiler[0] if compiler else 'an empty $CXX'} is not on PATH; set CXX to one")
    return Toolchain(compiler, tmp_path_factory.mktemp("native_cpp"))


def test_window_arithmetic(toolchain: Toolchain) -> None:
    """csrc/window.h against brute force, all small sizes and some beyond 2^31."""
    check(toolchain.link("test_window", toolchain.object(PROGRAMS / "test_window.cpp", "driver", "-O1")))


def test_kernels(toolchain: Toolchain) -> None:
    """Every path of the CPU kernels against the oracle: values, guard pages, NaN isolation, determinism."""
    check(toolchain.program)


@pytest.mark.slow
def test_huge_outputs(toolchain: Toolchain) -> None:
    """out and dqkv of more than 2^31 elements, on the widest path."""
    if toolchain.isas == ["scalar"]:
        pytest.skip("the scalar path takes minutes for 2^31 elements, and this CPU has no other")
    check(toolchain.program, "--huge")


@pytest.fixture(params=[SANITIZE], ids=["address,undefined"])
def sanitize(toolchain: Toolchain, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The flags of the sanitizers, if the compiler has their libraries and programs built with them start here."""
    source = toolchain.folder / "probe.cpp"
    source.write_text("int main() {}\n")
    probe = toolchain.folder / "probe"
    command = [*toolchain.compiler, *request.param, str(source), "-o", str(probe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        done = run(probe)
    if done.returncode != 0:
        absent(f"{shlex.join(request.param)} does not work here: {done.stderr[-1000:]}")
    return request.param


@pytest.mark.slow
def test_window_arithmetic_sanitized(toolchain: Toolchain, sanitize: tuple[str, ...]) -> None:
    test = toolchain.object(PROGRAMS / "test_window.cpp", "sanitized", *sanitize)
    check(toolchain.link("test_window_sanitized", test, flags=sanitize))


@pytest.mark.slow
def test_kernels_sanitized(toolchain: Toolchain, sanitize: tuple[str, ...]) -> None:
    driver = toolchain.driver_objects("sanitized", *sanitize)
    kernels = [
        toolchain.kernel_object(name, "sanitized_kernels", *(sanitize if name in BASE_SOURCES else SANITIZE_KERNELS))
        for name in SOURCES
    ]
    check(toolchain.link("test_window_attention_sanitized", *driver, *kernels, flags=sanitize), "--quick")


# ---------------------------------------------------------------------------------------------------------------------
# Planted bugs


@dataclass(frozen=True)
class Bug:
    """One wrong line: `old`, which must stand in the file exactly once, becomes `new`."""

    file: str
    old: str
    new: str
    isa: str = "widest"  # the path that is rebuilt and run; widest: of those that compute in float

    def rebuilt(self, isa: str) -> tuple[str, ...]:
        """The sources to compile again."""
        if self.file == "window.h":
            return ("window_attention", f"kernels_{isa}")
        return ("window_attention",) if self.file == "cpu/window_attention.cpp" else (f"kernels_{isa}",)


BUGS = {
    "region boundary off by one": Bug("window.h", "position < padded - shift ? 1", "position <= padded - shift ? 1"),
    "first region boundary off by one": Bug(
        "window.h", "position < padded - window ? 0", "position <= padded - window ? 0"
    ),
    "a roll does not wrap": Bug(
        "window.h", "if (p >= static_cast<Index>(rolled_size)) p -= static_cast<Index>(rolled_size);", ""
    ),
    "padding is taken for a pixel": Bug(
        "window.h", "position) < static_cast<Index>(size) ?", "position) <= static_cast<Index>(size) ?"
    ),
    "roll_pad without modulo": Bug("window.h", "shift : shift % size;", "shift : shift;"),
    "roll_pad wraps at the padded size": Bug("window.h", "padded_size : size;", "padded_size : padded_size;"),
    "last window thought to be of one region": Bug("window.h", "num_windows - 1;", "num_windows;"),
    "relative index transposed": Bug(
        "window.h", "return query - key + window - 1;", "return key - query + window - 1;"
    ),
    "offsets of 32 bits": Bug(
        "window.h",
        "return b * stride_b + y * stride_y + x * stride_x;",
        "return static_cast<int32_t>(b * stride_b + y * stride_y + x * stride_x);",
    ),
    "relative rows upside down": Bug(
        "cpu/window_attention.cpp", "return (2 * (shape.Wh - 1) - u) * shape.rows_x", "return u * shape.rows_x"
    ),
    "dbias without its last slice": Bug(
        "cpu/window_attention.cpp",
        "for (int64_t slice = 1; slice < slices; slice++) {",
        "for (int64_t slice = 1; slice < slices - 1; slice++) {",
    ),
    "dlogit_scale without its first slice": Bug(
        "cpu/window_attention.cpp",
        "for (int64_t slice = 0; slice < slices; slice++) total",
        "for (int64_t slice = 1; slice < slices; slice++) total",
    ),
    "q part of dpad_value not zero": Bug(
        "cpu/window_attention.cpp",
        "kernels.store(params.dtype, zeros.data(), part,",
        "kernels.store(params.dtype, values.data(), part,",
    ),
    "a strip is left out between slices": Bug(
        "cpu/window_attention.cpp", "count * (slice + 1) / slices", "(count * (slice + 1) - 1) / slices"
    ),
    "mask subtracted": Bug(
        "cpu/softmax.h", "const vf mask = set1(terms.mask_value);", "const vf mask = set1(-terms.mask_value);"
    ),
    "lone column not masked": Bug(
        "cpu/softmax.h", "terms.region[size.n() - 1], set1(terms.mask_value));", "terms.region[size.n() - 1], zero());"
    ),
    "lone column with the bias of the one before": Bug(
        "cpu/softmax.h", "terms.row_offset[i0 + r] + size.n() - 1];", "terms.row_offset[i0 + r] + size.n() - 2];"
    ),
    "columns behind N take part in the softmax": Bug(
        "cpu/softmax.h",
        "if constexpr (kRows == 0) x.set(r, v, inside(v, x.get(r, v), set1(-__builtin_inff())));",
        "",
    ),
    "row wholly -inf becomes NaN": Bug("cpu/softmax.h", "zero_where(get(top, v), -__builtin_inff())", "get(top, v)"),
    "maximum not taken over the lone column": Bug("cpu/softmax.h", "set(top, v, max_nan(get(top, v), t));", ""),
    "sum without the lone column": Bug("cpu/softmax.h", "set(sums, v, add(get(sums, v), e));", ""),
    "rows of probabilities taken before they are ready": Bug(
        "cpu/window_attention_fwd.h", "rows_of(ready), ready & 1);", "rows_of(ready), (ready & 1) ^ 1);"
    ),
    "sums of the first tile of rows for all": Bug(
        "cpu/window_attention_fwd.h", "storef(s.inverse[half] + r0 + ", "storef(s.inverse[half] + "
    ),
    "head stride ignored": Bug("cpu/window_attention_fwd.h", "h * p.qkv_stride[4]", "h * static_cast<int64_t>(p.hd)"),
    "pad_value of the wrong head": Bug("cpu/window_attention_fwd.h", "(part * p.nH + h) * hd", "(part * p.nH) * hd"),
    "norm not clamped": Bug("cpu/window_attention_fwd.h", "norm < kNormEps ? kNormEps : norm", "norm"),
    "dq without scale": Bug("cpu/window_attention_bwd.h", "part == 2 ? &one : &factor", "part != 1 ? &one : &factor"),
    "dv scaled like dk": Bug("cpu/window_attention_bwd.h", "part == 2 ? &one : &factor", "&factor"),
    "padding of v added to that of k": Bug(
        "cpu/window_attention_bwd.h", "dpad_value + (part - 1) * C", "dpad_value + 0 * C"
    ),
    "delta term missing": Bug("cpu/softmax.h", "mul(x, sub(d.get(r, v), shift))", "mul(x, d.get(r, v))"),
    "delta of the lone column missing": Bug(
        "cpu/softmax.h", "mul(x, sub(get(lone_d, v), get(deltas, v)))", "mul(x, get(lone_d, v))"
    ),
    "NaN of a row spills behind its bias": Bug(
        "cpu/softmax.h",
        "d.set(r, v, softmax.inside(v, mul(x, sub(d.get(r, v), shift)), zero()));",
        "d.set(r, v, mul(x, sub(d.get(r, v), shift)));",
    ),
    "later row blocks of dk and dv overwrite": Bug(
        "cpu/window_attention_bwd.h", "kSummed && b0 > 0 ? sum : nullptr", "kSummed && b0 > kBlock ? sum : nullptr"
    ),
    "clamped rows projected": Bug("cpu/window_attention_bwd.h", "if (inverse[i] == kClamped) continue;", ""),
    "dbias of the last strip only": Bug("cpu/window_attention_bwd.h", "sums.dbias[e] += s.", "sums.dbias[e] = s."),
    "last columns of a product left out": Bug("cpu/tile.h", "for (; v < vectors; v++)", "for (; v < vectors - 1; v++)"),
    "earlier parts of a long contraction left out": Bug("cpu/tile.h", "o, sum, memory);", "o, kNothing, memory);"),
    "last rows of a product left out": Bug(
        "cpu/tile.h", "for (; i < M; i++) gemm_tile", "for (; i < M - 1; i++) gemm_tile"
    ),
    "whole vectors read at the end of a row": Bug(
        "cpu/tile.h", "load_part<T>(row + whole, hd - whole)", "load<T>(row + whole)"
    ),
    "whole vectors written at the end of a row": Bug(
        "cpu/tile.h",
        "store_part<T>(row + d, mul(x[v], factor), hd - d)",
        "store<T>(row + d, mul(x[v], factor))",
    ),
    "rest of the transposed columns left out": Bug(
        "cpu/tile.h", "for (int j = 0; j < rest; j++) out[j]", "for (int j = 0; j < rest - 1; j++) out[j]"
    ),
    "maximum that drops NaN": Bug(
        "cpu/simd.h",
        "const vf r = _mm512_reduce_ps(x, 0x09);",
        "x = _mm512_max_ps(x, set1(-150.f));\n  const vf r = _mm512_reduce_ps(x, 0x09);",
        isa="avx512",
    ),
    "NaN becomes 0": Bug(
        "cpu/simd.h",
        "if (!(x >= -126.f)) return x < -126.f ? 0.f : x;",
        "if (!(x >= -126.f)) return 0.f;",
        isa="scalar",
    ),
    "bfloat16 cut off, not rounded": Bug(
        "cpu/simd.h", "_mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff))", "_mm256_setzero_si256()", isa="avx2"
    ),
    "odd last element of a contraction left out": Bug(
        "cpu/operands.h", "return (values + 1) / 2; }", "return values / 2; }", isa="avx512_bf16"
    ),
    "odd last row paired with what stands behind it": Bug(
        "cpu/operands.h",
        "i + 1 < n ? _mm512_loadu_si512(b + d) : _mm512_setzero_si512()",
        "_mm512_loadu_si512(b + d)",
        isa="avx512_bf16",
    ),
    "whole bfloat16 vectors read at the end of a row": Bug(
        "cpu/operands.h",
        "_mm512_maskz_loadu_epi16(rest, row + whole)",
        "_mm512_loadu_si512(row + whole)",
        isa="avx512_bf16",
    ),
}


class PlantedBugs:
    """Programs with some sources compiled anew, from changed copies, and all others as they are."""

    def __init__(self, toolchain: Toolchain) -> None:
        self.toolchain = toolchain

    def isa(self, wanted: str) -> str:
        """The path to test on; "widest" is the widest that computes in float32."""
        available = self.toolchain.isas
        if wanted == "widest":
            return [isa for isa in available if isa != "avx512_bf16"][-1]
        if wanted not in available:
            pytest.skip(f"this CPU has no {wanted} path, only {', '.join(available)}")
        return wanted

    def program(self, name: str, csrc: Path, rebuilt: tuple[str, ...], flags: tuple[str, ...] = ("-O0",)) -> Path:
        changed = [self.toolchain.kernel_object(source, name, *flags, csrc=csrc) for source in rebuilt]
        others = [path for source, path in self.toolchain.kernels.items() if source not in rebuilt]
        # First come the changed ones: of an inline function that several objects hold, the linker keeps the first.
        return self.toolchain.link(f"{name}/program", *changed, *self.toolchain.driver, *others, flags=flags)

    def plant(self, bug: Bug, folder: Path) -> Path:
        """A copy of csrc with the bug in it."""
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        source = csrc / bug.file
        text = source.read_text()
        assert text.count(bug.old) == 1, f"{bug.file} must hold this once, to plant a bug there: {bug.old}"
        source.write_text(text.replace(bug.old, bug.new))
        return csrc


@pytest.fixture(scope="session")
def planted(toolchain: Toolchain) -> PlantedBugs:
    return PlantedBugs(toolchain)


def noticed(done: subprocess.CompletedProcess[str], what: str) -> None:
    """The program ran, found a fault, and said so."""
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "FAILED" in output, f"{what}: exit status {done.returncode}\n{output[-2000:]}"
    print(output[:300])


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["widest", "scalar", "avx2", "avx512_bf16"])
def test_nothing_planted(planted: PlantedBugs, isa: str) -> None:
    """Compiled the way the planted bugs are, the true sources pass: what fails below fails for its bug."""
    isa = planted.isa(isa)
    program = planted.program(f"nothing_{isa}", CSRC, ("window_attention", f"kernels_{isa}"))
    check(program, "--quick", "--isa", isa)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_planted_bug(planted: PlantedBugs, name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    isa = planted.isa(bug.isa)
    csrc = planted.plant(bug, tmp_path)
    folder = re.sub(r"\W+", "_", name)

    program = planted.program(folder, csrc, bug.rebuilt(isa))
    noticed(run(program, "--quick", "--fail-fast", "--isa", isa), "test_window_attention")
    if bug.file == "window.h":
        shutil.copytree(PROGRAMS, tmp_path / "tests" / "cpp")
        test = planted.toolchain.object(tmp_path / "tests" / "cpp" / "test_window.cpp", folder, "-O1")
        noticed(run(planted.toolchain.link(f"{folder}/test_window", test)), "test_window")


# The threads of a piece each must share nothing that is written: scratch memory, above all.
RACE = Bug(
    "cpu/window_attention.cpp",
    "const Aligned<char> scratch = allocate<char>(static_cast<int64_t>(scratch_bytes));\n    kernels.fwd(",
    "static const Aligned<char> scratch = allocate<char>(static_cast<int64_t>(scratch_bytes));\n    kernels.fwd(",
)


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", [THREADS], ids=["thread"], indirect=True)
@pytest.mark.parametrize("race", [False, True], ids=["as they are", "planted race"])
def test_threads(planted: PlantedBugs, sanitize: tuple[str, ...], race: bool, tmp_path: Path) -> None:
    """The thread sanitizer finds no race between the pieces of a parallel loop, and does find a planted one."""
    isa = planted.isa("widest")
    csrc = planted.plant(RACE, tmp_path) if race else CSRC
    program = planted.program(f"threads_{race}", csrc, ("window_attention", f"kernels_{isa}"), sanitize)
    arguments = ("--quick", "--isa", isa, "--only", "size=10x15")
    if race:
        done = run(program, *arguments)
        assert done.returncode != 0 and "data race" in done.stderr, f"exit status {done.returncode}"
    else:
        check(program, *arguments)
