r"""How the kernels are compiled, and the instructions that Python has no words for."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

# Numba loads it at the first call, when others may hold the memory, and OpenBLAS waits without end
# for what it does not get.
import scipy.linalg  # noqa: F401

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The kernels of a store need numba, which the extra 'scale' installs: "
        "pip install 'pyg-mag[scale]'."
    ) from error

Function = TypeVar('Function', bound=Callable[..., Any])

# How many reads ahead of its use a value is asked for.
AHEAD = 8


def kernel(function: Function) -> Function:
    r"""Compiles a function at its first call and keeps the result on disk; it runs beside other
    threads."""
    compiled: Any = njit(cache=True, nogil=True)(function)
    return compiled


def read_only(array: np.ndarray) -> np.ndarray:
    r"""A view of an array that cannot be written, mapped or not. Each kind of array would compile a
    kernel anew."""
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, _ = signature.args
        made = context.make_array(array_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, array_type, made, [arguments[1]])
        word, address = ir.IntType(32), ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [address, word, word, word]),
            'llvm.prefetch',
        )
        # To read, into all caches, data.
        modes = [word(0), word(3), word(1)]
        builder.call(function, [builder.bitcast(pointer, address), *modes])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _trailing_zeros(typing: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


#: Asks for the cache line of an entry of an array that will be read soon.
prefetch: Any = intrinsic(_prefetch)
#: The place of the lowest bit that is set.
trailing_zeros: Any = intrinsic(_trailing_zeros)
