"""prefork-cache for Python, over its C interface: the part that the hosts here need. ctypes.CDLL releases Python's lock
around each call."""

import ctypes
import os

_library = ctypes.CDLL(os.environ.get("PREFORK_CACHE_LIBRARY", "libprefork_cache.so.0"))
_library.pfc_error_message.restype = ctypes.c_char_p
PFC_OK, PFC_MISS = 0, 1


class Error(Exception):
    pass


class _Value(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("owner", ctypes.c_void_p)]

    def take(self):
        taken = ctypes.string_at(self.data, self.length)
        _library.pfc_value_free(ctypes.byref(self))
        return taken


def _check(status):
    if status < PFC_OK:
        raise Error(_library.pfc_error_message().decode())
    return status


class Cache:
    def __init__(self, name, url):
        self._handle = ctypes.c_void_p()
        name, url = name.encode(), url.encode()
        _check(_library.pfc_open(
            name, ctypes.c_size_t(len(name)), url, ctypes.c_size_t(len(url)), None, ctypes.c_size_t(0),
            ctypes.byref(self._handle),
        ))

    def set(self, key, value, seconds):
        key = key.encode()
        _check(_library.pfc_set(
            self._handle, key, ctypes.c_size_t(len(key)), value, ctypes.c_size_t(len(value)),
            ctypes.c_int64(1000 * seconds), None,
        ))

    def get(self, key):
        key, value = key.encode(), _Value()
        status = _check(_library.pfc_get(self._handle, key, ctypes.c_size_t(len(key)), ctypes.byref(value), None))
        return None if status == PFC_MISS else value.take()


def after_fork():
    """Refreshes the stores after a fork, now instead of at their first use. Optional. Returns a line for a log."""
    report = _Value()
    _check(_library.pfc_after_fork(ctypes.byref(report)))
    return report.take().decode()
