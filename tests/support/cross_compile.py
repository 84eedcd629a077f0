"""Compile kernels for an ARM processor on any machine: LLVM's back end for it is in llvmlite's wheels. Nothing is run here.

NUMBA_CPU_NAME=cortex-a76 NUMBA_CPU_FEATURES=+neon,+dotprod GLMRUN_CACHE_DIR=FOLDER python cross_compile.py TRIPLE [PATTERN]

fills the folder with the kernels whose module.name the pattern finds (all, where it is left out), and those that they call: an ARM
Python of the same version under qemu-user then loads them instead of compiling for an hour. scripts/arm64_root.py does both.
"""

import re
import sys

import llvmlite.binding as llvm
from llvmlite.binding import targets
from numba.core import codegen

NOWHERE = 4096  # the address of every function that is not run here


def prepare(triple: str) -> None:
    """From now on Numba compiles for this triple. Called before anything of glmrun.kernels is imported."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = targets.get_default_triple = lambda: triple
    library = codegen.JITCodeLibrary
    library.get_pointer_to_function = lambda self, name: NOWHERE
    library._finalize_specific = lambda self: None
    library._get_compiled_object = lambda self: self._codegen._tm.emit_object(self._final_module)
    codegen.JITCPUCodegen.set_env = lambda self, name, env: None

    from glmrun.kernels.compiled import self_test

    self_test.is_right = lambda dots: True


def main() -> None:
    """Fill the cache folder, and print its name."""
    prepare(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    import glmrun.kernels.compiled.cache as kernels

    if wanted == "" and (kernels.folder / "crossed").exists():
        print(kernels.folder)
        return
    kernels._Cache.load_overload = lambda self, signature, context: None  # what an earlier run left can't be loaded here
    kernels.defer()
    import glmrun.forward
    import glmrun.kernels.checks
    import glmrun.kernels.importance  # noqa: F401

    for place, kernel in enumerate(kernels.registered):
        function = kernel.jitted.py_func
        if re.search(wanted, f"{function.__module__}.{function.__name__}"):
            for i in [*kernels.needed(place), place]:
                kernels.registered[i].compile()
    if wanted == "":
        (kernels.folder / "crossed").touch()
    print(kernels.folder)


if __name__ == "__main__":
    main()
