"""What one system has and another has not; nothing else in the program asks which system it runs on to read or write files.

    what                        Linux                         macOS, and any other POSIX system
    cores of this process       sched_getaffinity             os.cpu_count: there is no affinity to ask
    sync a file's data          fdatasync                     fsync, which syncs its times, too
    lock an open file           filelock, which knows each system's way
    announce a read             posix_fadvise(WILLNEED)       nothing: the read itself waits for the disk
    map pages in bulk           madvise(MADV_POPULATE_READ)   nothing: pages come as they are touched
    ask for pages in a step     madvise, mincore from kernels    the same calls; what they refuse comes as it is touched
    keep mapped pages           mlock, as far as allowed      nothing: the system chooses what it drops
    reserve address space       mmap, MAP_NORESERVE           mmap, MAP_NORESERVE under its own number; else a plain mapping
    make writers wait           fcntl(F_SETLEASE)             nothing: size and time are compared before each step
    limits of control groups    /proc/self/cgroup             nothing: the machine's memory counts (glmrun/machine.py)
    what the processor is       /proc/cpuinfo                 platform.processor()
    what ARM processors have    getauxval(AT_HWCAP)           sysctlbyname(hw.optional.arm)
    give written pages back     madvise(MADV_DONTNEED)        madvise(MADV_FREE): MADV_DONTNEED would keep them
    limit a process's memory    setrlimit, /proc/self/statm   nothing: a template is limited in time alone (glmrun/chat/sandbox.py)
    read past the page cache    open(O_DIRECT)                nothing: the disk's speed is not measured
    wait for a core             /proc/thread-self/schedstat   nothing: a step never has fewer threads (glmrun/engine/crew.py)
    memory used, bytes read     /proc/self/status and io      nothing: both are left out

A call that is missing is looked for when it is needed, never when a module is imported.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14; Python's mmap has no name for it
WILL_NEED = 3  # MADV_WILLNEED, on every POSIX system
NORESERVE = {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0)  # MAP_NORESERVE; Python names it from 3.13 on

GIVE_BACK = "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED"  # its name in mmap

sync_data = getattr(os, "fdatasync", os.fsync)


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def core_wait() -> Iterator[Callable[[], float]]:
    """Gives a function: the seconds that the calling thread has been ready to run so far while other threads had the cores.

    0 where the system does not tell. It counts the thread that entered here.
    """
    file = -1

    def seconds() -> float:
        return int(os.pread(file, 64, 0).split()[1]) / 1e9

    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        seconds()
    except (OSError, ValueError, IndexError):
        tell: Callable[[], float] = lambda: 0.0  # noqa: E731
    else:
        tell = seconds
    try:
        yield tell
    finally:
        if file >= 0:
            os.close(file)


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    import platform

    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(key: str) -> str:
    """What Linux says of the first processor under this key; nothing where it does not."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
    return ""


_HARDWARE_BITS = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}  # of getauxval(AT_HWCAP) and (AT_HWCAP2)
_SYSCTLS = {"dotprod": b"hw.optional.arm.FEAT_DotProd", "i8mm": b"hw.optional.arm.FEAT_I8MM"}


def arm_features() -> frozenset[str]:
    """Which of "dotprod" and "i8mm" the system says this ARM processor has, under LLVM's names, which does not ask for them."""
    import ctypes
    import platform

    if platform.machine() not in ("aarch64", "arm64"):
        return frozenset()
    if sys.platform == "darwin":
        return frozenset(name for name, key in _SYSCTLS.items() if _sysctl(key))
    try:
        ask = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return frozenset()
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(name for name, (kind, bit) in _HARDWARE_BITS.items() if ask(kind) & bit)


def _sysctl(key: bytes) -> int:
    """A number that macOS keeps under this name; 0 where it does not know the name."""
    import ctypes

    value = ctypes.c_int64(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    failed = ctypes.CDLL(None).sysctlbyname(key, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else value.value


def lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed or this process ends; False where another has it, which `wait` waits for.

    For a journal that is its own lock: what it says and who may write it never come apart. Raises OSError without such locks.
    """
    from filelock import lock_descriptor  # 60 ms that only a start which locks something pays

    return lock_descriptor(descriptor, blocking=wait)


def will_need(descriptor: int, begin: int, n_bytes: int) -> None:
    """Let the system begin to read these bytes of a file, where it can."""
    if advise := getattr(os, "posix_fadvise", None):
        with contextlib.suppress(OSError):
            advise(descriptor, begin, n_bytes, os.POSIX_FADV_WILLNEED)


def populate(start: int, n_bytes: int) -> bool:
    """Map these pages, addresses of a mapped file, in one call; False where the system can't or the file can't be read."""
    if sys.platform != "linux":
        return False
    import ctypes

    return not ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes), POPULATE_READ)


def ask(start: int, n_bytes: int) -> None:
    """Let the system begin to read these pages, addresses of a mapped file, where it can."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes), WILL_NEED)


def keep(start: int, n_bytes: int) -> bool:
    """Have the system keep these pages in memory while they are mapped; False where it does not, or the user may not ask for it."""
    if sys.platform != "linux":
        return False
    import ctypes

    return not ctypes.CDLL(None).mlock(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes))


def let_go(start: int, n_bytes: int) -> None:
    """Take keep() back."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).munlock(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes))


def take_lease(descriptor: int) -> bool:
    """Make whoever opens this file to write it wait; whether the system does so. It needs the file's owner and a local disk."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # what reports a writer; nobody minds this one
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def holds_lease(descriptor: int) -> bool:
    """Whether no writer waits for the lease that take_lease() took."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def give_lease_back(descriptor: int) -> None:
    """Let writers go ahead."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
