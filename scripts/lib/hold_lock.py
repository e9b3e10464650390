#!/usr/bin/env python3
"""Holds one byte-range lock for scripts/demo.

usage: hold_lock.py FILE posix|ofd EX|SH START LENGTH   (LENGTH 0: to the end of file)

Waits for the lock, prints "granted", keeps it until standard input ends.
"""
import fcntl
import os
import struct
import sys

F_OFD_SETLKW = 38  # not in every Python's fcntl


def main():
    path, kind, mode, start, length = sys.argv[1:]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    lock_type = fcntl.F_WRLCK if mode == "EX" else fcntl.F_RDLCK
    # struct flock of x86-64 and arm64: type, whence, start, len, pid
    flock = struct.pack("hhqqi4x", lock_type, os.SEEK_SET, int(start), int(length), 0)
    fcntl.fcntl(fd, fcntl.F_SETLKW if kind == "posix" else F_OFD_SETLKW, flock)
    print("granted", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
