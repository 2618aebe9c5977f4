"""Loads libregatta.so (the first argument) as any language would, and makes steps: python3's standard library only."""

import ctypes
import math
import sys

F32 = 0
regatta = ctypes.CDLL(sys.argv[1])
regatta.regatta_version.restype = ctypes.c_char_p
regatta.regatta_last_error.restype = ctypes.c_char_p
regatta.regatta_engine_add_group.argtypes = [ctypes.c_void_p] + 3 * [ctypes.c_char_p] + [ctypes.c_double, ctypes.c_void_p]
regatta.regatta_engine_step.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p, ctypes.c_size_t]


def call(name, *arguments):
    if getattr(regatta, "regatta_" + name)(*arguments) != 0:
        raise RuntimeError(regatta.regatta_last_error().decode())


ranks, engine, data, numel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int64()
call("transport_local", 1, None, ctypes.byref(ranks))
call("engine_create", ranks, b"", ctypes.byref(engine))
call("engine_add_group", engine, b"matrices", b"reg", b"rho=0.2", 1.0, None)
call("engine_add_param", engine, b"W", (ctypes.c_int64 * 2)(8, 4), 2, F32, None, 0, None)
call("engine_build", engine)
call("engine_param", engine, 0, ctypes.byref(data), ctypes.byref(numel), None)
weights = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
for i in range(numel.value):
    weights[i] = math.cos(i)
call("engine_publish_params", engine)


def loss():
    return sum(weights[i] ** 2 for i in range(numel.value)) / 2


first = loss()
for _ in range(20):
    gradient = (ctypes.c_float * numel.value)(*weights[: numel.value])
    call("engine_add_grad", engine, 0, gradient, numel, F32)
    call("engine_step", engine, 0.2, None, 0)
last = loss()
assert last < 0.5 * first, (first, last)

try:
    call("engine_add_grad", engine, 5, gradient, numel, F32)
    sys.exit("a wrong index was taken")
except RuntimeError as error:
    assert "param is 5; the engine has 1 parameters" in str(error), error
call("engine_destroy", engine)
call("transport_destroy", ranks)
print(f"regatta {regatta.regatta_version().decode()} from Python: loss {first:.3f} -> {last:.3f}")
