"""Every way to create a process in Python, while four threads use the cache: forks.py URL LIBRARY."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

library = ctypes.CDLL(sys.argv[2])  # which releases the interpreter's lock around each call
c = ctypes.CDLL(None)
library.pfc_error_message.restype = ctypes.c_char_p
SIZE, MILLISECONDS = ctypes.c_size_t, ctypes.c_int64


def checked(status):
    assert status >= 0, (status, library.pfc_error_message())
    return status


cache = ctypes.c_void_p()
url = sys.argv[1].encode()
checked(library.pfc_open(b"python", SIZE(6), url, SIZE(len(url)), None, SIZE(0), ctypes.byref(cache)))


def write_and_read_back(who, number):
    key, value = f"{who}:{number % 50}".encode(), f"{who} wrote {number}".encode()
    buffer, length = ctypes.create_string_buffer(64), SIZE()
    checked(library.pfc_set(cache, key, SIZE(len(key)), value, SIZE(len(value)), MILLISECONDS(60000), None))
    into = (cache, key, SIZE(len(key)), buffer, SIZE(64), ctypes.byref(length), None)
    assert checked(library.pfc_get_into(*into)) == 0
    assert buffer.raw[: length.value] == value, (who, value, buffer.raw[: length.value])


def child(who):
    signal.alarm(60)
    for number in range(3):
        write_and_read_back(who, number)


def in_a_fork(fork, who):
    pid = fork()
    if pid == 0:
        try:
            child(who)
        except BaseException as failure:
            os.write(2, f"{who}: {failure!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, who


failures, is_over = [], threading.Event()


def use(who):
    number = 0
    try:
        while not is_over.is_set():
            write_and_read_back(who, number)
            number += 1
            time.sleep(0)
    except BaseException as failure:
        failures.append((who, failure))


threads = [threading.Thread(target=use, args=(f"thread-{number}",)) for number in range(4)]
for thread in threads:
    thread.start()
forking = multiprocessing.get_context("fork")
for round in range(10):
    in_a_fork(os.fork, f"fork-{round}")
    process = forking.Process(target=child, args=(f"process-{round}",))
    process.start()
    process.join()
    assert process.exitcode == 0, "multiprocessing"
    assert subprocess.run(["echo", "hello"], stdout=subprocess.PIPE).stdout == b"hello\n"
    before_exec = lambda: write_and_read_back(f"before-exec-{round}", round)
    assert subprocess.run(["true"], preexec_fn=before_exec).returncode == 0
    assert os.system("true") == 0 and os.popen("echo hello").read() == "hello\n"
with forking.Pool(4) as pool:
    pool.map(child, [f"pool-{number}" for number in range(20)])
is_over.set()
for thread in threads:
    thread.join()
assert not failures, failures
# Without the interpreter's knowledge. Its own locks allow this only without other threads.
for round in range(20):
    in_a_fork(c.fork, f"raw-{round}")
    write_and_read_back("main", round)
print("ok")
