"""What Windows has not, hidden from every process that finds this on its path: modules, and functions of os and signal.

Python's own modules and numpy are imported first, since they know their system and would fail otherwise; what is hidden
is hidden from all that is imported after them. What Python itself calls in Windows' stead stays, as os.statvfs does.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import concurrent.futures  # noqa: F401
import ctypes  # noqa: F401
import getpass  # noqa: F401
import logging  # noqa: F401
import multiprocessing.util  # noqa: F401
import os
import pathlib  # noqa: F401
import random  # noqa: F401
import shutil  # noqa: F401
import signal
import socket  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import threading  # noqa: F401
import uuid  # noqa: F401

import numpy  # noqa: F401

MODULES = ("fcntl", "grp", "posix_ipc", "pwd", "resource", "syslog", "termios", "tty")
OS = (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK confstr fchmod fchown fork fpathconf getegid geteuid getgid "
    "getloadavg getpgid getpgrp getuid killpg lchown memfd_create mkfifo nice posix_fadvise posix_fallocate pread "
    "preadv pwrite pwritev register_at_fork sched_getaffinity sched_setaffinity setpgid setsid fstatvfs "
    "sysconf sync uname "
)
SIGNAL = "ITIMER_REAL SIGALRM SIGHUP SIGUSR1 SIGUSR2 alarm getitimer pause pthread_sigmask setitimer sigwait"

for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
for module, names in ((os, OS), (signal, SIGNAL)):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
