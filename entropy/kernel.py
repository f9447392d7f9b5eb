"""Compiled functions: numba's machine code where numba is installed, the same function in plain Python elsewhere."""

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

TRIED = {(0, 68)}  # versions of numba that `_loaded` was tested with


@functools.cache
def numba_or_none():
    """The numba module, or None where it is switched off (NUMBA_DISABLE_JIT=1) or, with one warning, missing."""
    try:
        import numba  # here, not above: it takes 0.1-0.3 s, and reading a header needs no kernel
    except ImportError as error:
        warnings.warn(f"numba cannot be imported ({error}): entropy coding runs in plain Python, slowly", stacklevel=2)
        return None
    if numba.config.DISABLE_JIT:
        return None

    @numba.extending.typeof_impl.register(Kernel)
    def type_of(kernel: Kernel, context):  # so that a kernel can call another one, which must be in the same file:
        return numba.types.Dispatcher(kernel.compiled)  # numba takes its cache as up to date by that file's date alone

    return numba


class Kernel:
    """A function that numba compiles on its first call, or that runs as it is where there is no numba.

    signatures: numba's, of all types that it is called with; "Array(t, n, 'C', True)" also takes read-only arrays.
    Machine code is kept in numba's cache folder; where that cannot be used, it is compiled for this process only.
    """

    def __init__(self, function: Callable, *signatures: str):
        self.function, self.signatures = function, signatures
        functools.update_wrapper(self, function)

    def __call__(self, *arguments):
        return self.compiled(*arguments)

    @functools.cached_property
    def compiled(self) -> Callable:
        if numba_or_none() is None:
            return self.function
        try:
            return self._compile(cache=True)
        except Exception:  # no folder, no space, a damaged file; an error in the code itself is raised again below
            return self._compile(cache=False)

    @property
    def cached(self) -> bool:
        """Whether the cache has machine code of this function, perhaps of an earlier version of its source."""
        try:
            folder = Path(self._dispatcher(cache=True).stats.cache_path)
        except RuntimeError:  # no folder can be written
            return False
        code = self.function.__code__
        name = f"{Path(code.co_filename).stem}.{self.function.__qualname__}-{code.co_firstlineno}"
        return any(folder.glob(f"{name}.py{sys.version_info[0]}{sys.version_info[1]}*.nbi"))

    @property
    def kept(self) -> bool:
        """Whether machine code that is compiled now will be found at the next start."""
        try:
            return numba_or_none() is not None and bool(self._dispatcher(cache=True).stats.cache_path)
        except RuntimeError:  # no folder can be written
            return False

    def _compile(self, cache: bool) -> Callable:
        dispatcher = self._dispatcher(cache)
        for signature in self.signatures:
            if not (cache and _loaded(dispatcher, signature)):
                dispatcher.compile(signature)
        dispatcher.disable_compile()  # or each mixture of read-only and writable arrays would be compiled anew
        return dispatcher

    def _dispatcher(self, cache: bool):
        return numba_or_none().njit(self.function, cache=cache, nogil=True, error_model="numpy")


def _loaded(dispatcher, signature: str) -> bool:
    """Load machine code from numba's cache; False if there is none, or if this version of numba is not in TRIED.

    It skips what numba imports and declares before it compiles anything, which takes most of the time of loading.
    """
    from numba import version_info
    from numba.core.runtime import rtsys

    if version_info.short not in TRIED:
        return False
    context = dispatcher.targetctx
    rtsys.initialize(context)
    context.refresh = lambda: None  # on this object: hides the method of its class
    try:
        code = dispatcher._cache.load_overload(signature, context)
    finally:
        del context.refresh
    if code is not None:
        context.insert_user_function(code.entry_point, code.fndesc, [code.library])
        dispatcher.add_overload(code)
    return code is not None


def kernel(*signatures: str) -> Callable[[Callable], Kernel]:
    """Decorator: `Kernel(function, *signatures)`."""
    return lambda function: Kernel(function, *signatures)
