"""What the runtime does with an engine of our own, on small libraries that a C compiler makes in the test."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepack.errors import EngineMissingError
from edgepack_runtimes.gguf import abi, log, own
from edgepack_runtimes.gguf import library as gguf_library

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

PARAMS = "struct params { _Bool cpumask[512]; int n_threads, prio; unsigned poll; _Bool strict_cpu, paused; };\n"
LLAMA = """
#include <string.h>
static char seen[4096];
void *ggml_backend_load(const char *path) {
    strcat(seen, strrchr(path, '/') + 1); strcat(seen, " ");
    return strstr(path, "broken") ? 0 : seen;
}
const char *loaded(void) { return seen; }
struct params ggml_threadpool_params_default(int n) {
    struct params p; memset(&p, 0, sizeof p); p.n_threads = n; p.poll = 50; return p;
}
static void *attached[2];
void llama_attach_threadpool(void *context, void *pool, void *batch) { attached[0] = context; attached[1] = pool; }
void llama_detach_threadpool(void *context) { attached[0] = context; attached[1] = 0; }
void **pools(void) { return attached; }
"""
CPU = """
int edgepack_rounds = 2000;
static int made[3];
int ggml_backend_score(void) { return SCORE; }
void *ggml_threadpool_new(struct params *p) {
    made[0] = p->n_threads; made[1] = (int) p->poll; made[2] = 1;
    return made;
}
void ggml_threadpool_free(void *pool) { ((int *) pool)[2] = 0; }
"""


def library(folder: Path, name: str, text: str, *flags: str) -> Path:
    assert COMPILER is not None
    path = folder / name
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", path, *flags], input=PARAMS + text, text=True, check=True
    )
    return path


def loaded(native: ctypes.CDLL) -> list[str]:
    native.loaded.restype = ctypes.c_char_p
    return str(native.loaded().decode()).split()


def test_the_best_variant_is_loaded_and_whatever_accelerator_lies_beside_it(tmp_path: Path) -> None:
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA)))
    for name, score in (("haswell", 64), ("zen4", 512), ("x64", 1), ("sapphirerapids", 0)):
        library(tmp_path, f"libggml-cpu-{name}.so", CPU, f"-DSCORE={score}")
    for name in ("libggml-base.so", "libggml-cuda.so", "libggml-broken.so", "libother.so"):
        library(tmp_path, name, "")
    assert own.load(native, tmp_path).variant == "zen4"
    assert loaded(native) == ["libggml-broken.so", "libggml-cuda.so", "libggml-cpu-zen4.so"]


def test_nothing_comes_from_the_working_folder_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    native = ctypes.CDLL(str(library(tmp_path / "lib", "libllama.so", LLAMA)))
    library(tmp_path / "lib", "libggml-cpu-x64.so", CPU, "-DSCORE=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GGML_BACKEND_PATH", str(library(tmp_path, "libggml-cpu-zen4.so", CPU, "-DSCORE=512")))
    own.load(native, tmp_path / "lib")
    assert loaded(native) == ["libggml-cpu-x64.so"]


def test_what_ggml_tells_of_a_variant_that_is_loaded_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    #include <stdio.h>
    static void (*tell)(int, const char *, void *);
    void llama_log_set(void (*to)(int, const char *, void *), void *data) { tell = to; }
    int llama_max_devices(void) { return 1; }
    const char *llama_version(void) { return "0"; }
    const char *ggml_version(void) { return "0"; }
    void *ggml_backend_load(const char *path) {
        if (tell) tell(2, "loaded\\n", 0); else fprintf(stderr, "loaded\\n");
        return tell;
    }
    """
    text += LLAMA[LLAMA.index("struct params ggml") :].replace("memset(&p, 0, sizeof p);", "p = (struct params) {0};")
    path = library(tmp_path, "libllama.so", text)
    library(tmp_path, "libggml-cpu-x64.so", CPU, "-DSCORE=1")

    def declare(native: ctypes.CDLL, _: object) -> None:
        native.llama_version.restype = native.ggml_version.restype = ctypes.c_char_p

    monkeypatch.setattr(abi, "declare", declare)
    with log.lines() as told, pytest.raises(EngineMissingError, match=r"reports llama\.cpp 0 "):
        gguf_library.bind(gguf_library.ENGINES[0], path)
    assert told == ["loaded"]


def test_a_processor_without_a_variant_is_a_reason(tmp_path: Path) -> None:
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA)))
    library(tmp_path, "libggml-cpu-zen4.so", CPU, "-DSCORE=0")
    with pytest.raises(OSError, match="no variant for this processor"):
        own.load(native, tmp_path)


def test_an_engine_without_the_barrier_of_ours_is_refused(tmp_path: Path) -> None:
    text = CPU.replace("edgepack_rounds", "other_rounds")
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA + text, "-DSCORE=1")))
    with pytest.raises(ValueError, match="edgepack_rounds"):
        own.load(native, tmp_path)


def test_threads_wait_as_they_are_told(tmp_path: Path) -> None:
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA + CPU, "-DSCORE=1")))
    pools, rounds = own.load(native, tmp_path), ctypes.c_int.in_dll(native, "edgepack_rounds")
    found = []
    for spin in (True, None, False, None):
        pools.wait(spin)
        found.append(rounds.value)
    assert found == [-1, 2000, 0, 2000]


def test_a_context_has_a_pool_of_its_threads_until_it_is_freed(tmp_path: Path) -> None:
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA + CPU, "-DSCORE=1")))
    pools = own.load(native, tmp_path)
    native.pools.restype = ctypes.POINTER(ctypes.c_void_p)
    assert pools.attach(4096, 1) is None
    assert native.pools()[0] is None
    pool = pools.attach(4096, 3)
    assert pool is not None
    assert list(native.pools()[:2]) == [4096, pool]
    facts = ctypes.cast(pool, ctypes.POINTER(ctypes.c_int))
    assert facts[0] == 3
    assert 0 < facts[1] < 50
    pools.free(pool)
    assert facts[2] == 0


def test_a_context_that_computes_with_one_thread_wakes_no_pool(tmp_path: Path) -> None:
    native = ctypes.CDLL(str(library(tmp_path, "libllama.so", LLAMA + CPU, "-DSCORE=1")))
    pools = own.load(native, tmp_path)
    native.pools.restype = ctypes.POINTER(ctypes.c_void_p)
    pool = pools.attach(4096, 3)
    assert pool is not None
    found = []
    for threads in (1, 2, 3, 1):
        pools.use(4096, pool, threads)
        found.append(native.pools()[1])
    assert found == [None, pool, pool, None]
