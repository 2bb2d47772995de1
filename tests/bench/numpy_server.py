"""The baseline of T17: a server loop that collects every update in memory, then adds them up with NumPy.

    numpy_server.py memory UPDATES ELEMENTS    updates handed over by copy in this process; prints updates/s
    numpy_server.py serve UPDATES ELEMENTS     prints its port; each of UPDATES connections sends a weight (f64) and ELEMENTS f32, and is
                                               answered with one byte when the mean is there
Weighted mean in float32, weight by weight, as such servers do it. Exit 77: numpy is not here.
"""
import socket
import sys
import threading
import time

try:
    import numpy as np
except ImportError:
    sys.exit(77)

WAY, UPDATES, ELEMENTS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def mean_of(collected):
    total = np.zeros(ELEMENTS, np.float32)
    for weight, update in collected:
        total += update * np.float32(weight)
    return total / np.float32(sum(weight for weight, _ in collected))


def receive(connection, view):
    while view:
        got = connection.recv_into(view, min(len(view), 1 << 18))
        if not got:
            sys.exit("a client closed early")
        view = view[got:]


def take(connection, collected):
    head = bytearray(8)
    receive(connection, memoryview(head))
    update = np.empty(ELEMENTS, np.float32)
    receive(connection, memoryview(update).cast("B"))
    collected.append((float(np.frombuffer(head, np.float64)[0]), update))


if WAY == "memory":
    source = (np.arange(ELEMENTS) % 1009).astype(np.float32) * np.float32(1e-3)
    start = time.monotonic()
    mean_of([(1.0, source.copy()) for _ in range(UPDATES)])
    print(UPDATES / (time.monotonic() - start))
else:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    connections, threads, collected = [], [], []
    for _ in range(UPDATES):
        connections.append(listener.accept()[0])
        threads.append(threading.Thread(target=take, args=(connections[-1], collected)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    mean_of(collected)
    for connection in connections:
        connection.sendall(b"1")
