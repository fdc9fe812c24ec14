"""An array on a device that does not exist: what a GPU would refuse, this refuses too.

It answers to the two protocols by which CuPy's arrays answer to NumPy's functions, and keeps its
numbers on the host. Whatever would fail on a GPU fails here: host and device arrays in one
operation, an index that lives on the host, a silent conversion to NumPy. Numbers leave by `get`.
"""

from types import SimpleNamespace

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

SCALARS = (bool, int, float, complex, np.generic, str, type(None), type, np.dtype, slice)


class DeviceArray(NDArrayOperatorsMixin):
    """A NumPy array that only NumPy's protocols can reach."""

    def __init__(self, array):
        self._array = array

    def get(self):
        """The door out: a copy on the host."""
        return self._array.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("a device array was converted to NumPy without a word")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return _wrap(getattr(ufunc, method)(*_unwrap(inputs), **_unwrap(kwargs)))

    def __array_function__(self, function, types, args, kwargs):
        if function is np.asarray:  # with like=: an explicit upload, the other door in
            return FakeModule.asarray(*args, **kwargs)
        return _wrap(function(*_unwrap(args), **_unwrap(kwargs)))

    def __getitem__(self, index):
        return _wrap(self._array[_unwrap(index)])

    def __setitem__(self, index, value):
        self._array[_unwrap(index)] = _unwrap(value)

    def __bool__(self):
        raise TypeError("an `if` over a device array waits for the device")

    __float__ = __int__ = __index__ = __len__ = __iter__ = __bool__

    def reshape(self, *shape):
        return _wrap(self._array.reshape(*shape))

    def astype(self, dtype):
        return _wrap(self._array.astype(dtype))

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)
    real = property(lambda self: _wrap(self._array.real))
    T = property(lambda self: _wrap(self._array.T))
    # What a kernel's wrapper asks for, under CuPy's names: data.ptr is an address.
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    data = property(lambda self: SimpleNamespace(ptr=self._array.ctypes.data))


class FakeModule:
    """The one function of an array module that the program calls: the door in."""

    @staticmethod
    def asarray(array):
        return array if isinstance(array, DeviceArray) else DeviceArray(np.array(array))


def _unwrap(value):
    """Take device arrays apart for NumPy, and refuse arrays that live on the host."""
    if isinstance(value, DeviceArray):
        return value._array
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(v) for v in value)
    if isinstance(value, dict):
        return {k: _unwrap(v) for k, v in value.items()}
    if isinstance(value, SCALARS) or value is Ellipsis:
        return value
    raise TypeError(f"a {type(value).__name__} of the host met a device array")


def _wrap(value):
    """NumPy's results stay on the device; a reduction to one number does too, as with CuPy."""
    if isinstance(value, np.ndarray | np.generic):
        return DeviceArray(np.asarray(value))
    if isinstance(value, tuple | list):
        return type(value)(_wrap(v) for v in value)
    return value
