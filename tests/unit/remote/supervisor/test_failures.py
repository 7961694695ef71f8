"""Classify what failed programs print: known messages of PyTorch and other libraries, or messages produced here."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.contract.reported import FailureRecord
from remote.supervisor.failures import (
    MAX_CHARS,
    ExitDetails,
    Failure,
    classify,
    describe_exit,
    signal_of,
)
from tests.remote_runs import in_private_mounts
from tests.support import RECORDED


def traceback(*last: str) -> str:
    """A log that ends with these exceptions, each raised while the one before it was handled."""
    raised = [
        f'Traceback (most recent call last):\n  File "/code/workers/trainer.py", line 88, in run\n    step()\n{line}'
        for line in last
    ]
    return "epoch 3 loss 0.21\n" + "\n\nDuring handling of the above exception, another exception occurred:\n\n".join(
        raised
    )


CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of"
    " which 1.07 GiB is free. Including non-PyTorch memory, this process has 13.49 GiB memory in use. Of the allocated"
    " memory 12.91 GiB is allocated by PyTorch, and 457.16 MiB is reserved by PyTorch but unallocated."
)
CPU_OOM = (
    "RuntimeError: [enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    " to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
)
NUMPY_OOM = (
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 2.00 PiB for an array with shape (281474976710656,)"
    " and data type float64"
)
LOADER_KILLED = (
    "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed. ",
    "RuntimeError: DataLoader worker (pid(s) 4242) exited unexpectedly",
)
ECC = (
    "RuntimeError: CUDA error: uncorrectable ECC error encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be"
    " incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
SAVE_ENOSPC = (
    "OSError: [Errno 28] No space left on device",
    "RuntimeError: [enforce fail at inline_container.cc:603] . unexpected pos 704 vs 598",
)
SAVE_ENOSPC_BY_NAME = (
    "RuntimeError: basic_ios::clear: iostream error",
    "RuntimeError: [enforce fail at inline_container.cc:603] . unexpected pos 576 vs 534",
)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (traceback(CUDA_OOM), "gpu_oom"),
        (traceback("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be ..."), "gpu_oom"),
        (
            traceback("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "gpu_oom",
        ),
        (traceback(CPU_OOM), "oom"),
        (traceback(NUMPY_OOM), "oom"),
        (traceback("MemoryError"), "oom"),
        (traceback("OSError: [Errno 12] Cannot allocate memory"), "oom"),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n", "oom"),
        (traceback(*SAVE_ENOSPC), "disk_full"),
        (traceback(*SAVE_ENOSPC_BY_NAME), "disk_full"),
        (traceback("RuntimeError: write(): fd 3 failed with No space left on device"), "disk_full"),
        (traceback("OSError: [Errno 122] Disk quota exceeded: 'x.pt'"), "disk_full"),
        (traceback(ECC), "gpu_lost"),
        (traceback("RuntimeError: No CUDA-capable device is detected"), "gpu_lost"),
        (traceback("RuntimeError: CUDA error: unspecified launch failure"), "gpu_lost"),
        ("Unable to determine the device handle for GPU0: 0000:00:1E.0: GPU is lost.\n", "gpu_lost"),
        (traceback("ValueError: loss is nan at step 12"), "non_finite"),
        (traceback("RuntimeError: CUDA error: device-side assert triggered"), "exit"),
        (traceback("IndexError: The shape of the mask [16] at index 0 does not match [1]"), "exit"),
        ("loss is nan, and so what\n" * 30 + "no traceback\n" * 20, "exit"),  # printed long before its end
        (traceback("MemoryError") + "\nretrying\n" + traceback("KeyError: 'labels'"), "exit"),  # the last one counts
        ("", "exit"),
    ],
)
def test_reason_comes_from_the_output(log: str, reason: str) -> None:
    failure = classify(1, ExitDetails(log=log, step=1250))
    assert (failure.reason, failure.exit_code, failure.step) == (reason, 1, 1250)
    assert failure.detail.startswith("exit code 1")


def test_detail_is_the_last_exception_in_one_line() -> None:
    failure = classify(1, ExitDetails(log=traceback("KeyError: 'a'", "ValueError: no such thing")))
    assert failure.detail == "exit code 1: ValueError: no such thing"
    assert failure.exception == "ValueError: no such thing"
    assert len(classify(1, ExitDetails(log=traceback(CUDA_OOM))).exception or "") == MAX_CHARS


def test_digest_of_a_log_leaves_out_times() -> None:
    """What an attempt printed tells whether it got further; when it printed that does not."""

    def digest(log: str) -> str | None:
        return classify(1, ExitDetails(log)).log_digest

    first = "2026-11-28 09:10:11,123 start\nepoch 1 took 3.25 s at <x at 0x7f00aa>\n[orch] attempt 1\n"
    again = "2026-11-28 10:20:30,456 start\nepoch 1 took 3.31 s at <x at 0x7f11bb>\n[orch] attempt 2\n"
    assert digest(first) == digest(again)
    assert digest(first) != digest(again.replace("epoch 1", "epoch 2"))
    assert digest("1" * 65536)  # in reasonable time


def test_error_message_without_a_traceback_is_quoted() -> None:
    failure = classify(
        1, ExitDetails(log="step 4\ntar: x: Wrote only 2048 of 10240 bytes\ncp: No space left on device\nbye\n")
    )
    assert failure.detail == "exit code 1: cp: No space left on device"
    assert failure.exception is None


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("step 4\nI give up\n", "last line: I give up"),  # sys.exit("I give up")
        (
            "usage: a.py [-h]\na.py: error: unrecognized arguments: --lr 3\n",
            "a.py: error: unrecognized arguments: --lr 3",
        ),
        ("run.sh: line 3: pyhton: command not found\nbye\n", "run.sh: line 3: pyhton: command not found"),
        ("I give up\nwandb: View run at https://x\nmake: *** [train] Error 1\n", "last line: I give up"),
        ("  1%|=\r  2%|=\rCUDA driver error: x\n", "CUDA driver error: x"),
        ("eval error 0.3\n" + "step\n" * 9 + "I give up\n", "last line: I give up"),
        ("[orch] x\n", ""),
        ("", ""),
    ],
)
def test_last_message_is_quoted_if_there_is_no_traceback(log: str, shown: str) -> None:
    failure = classify(1, ExitDetails(log))
    assert failure.detail == ("exit code 1: " + shown if shown else "exit code 1")
    assert failure.exception is None
    assert classify(-9, ExitDetails(log)).detail == "ended by SIGKILL"


@pytest.mark.parametrize(
    ("name", "reason", "shown"),
    [
        ("torchrun-oom", "gpu_oom", "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("torchrun-record", "gpu_oom", "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("torchrun-exit", "exit", "last line: num_heads must divide hidden_size"),
        ("torchrun-arg", "exit", "ddp.py: error: unrecognized arguments: --learning-rate 3"),
        ("torchrun-kill", "signal", "rank 1 was ended by SIGKILL"),
        ("accelerate-oom", "gpu_oom", "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("accelerate-exit", "exit", "last line: num_heads must divide hidden_size"),
        ("accelerate-arg", "exit", "one.py: error: unrecognized arguments: --learning-rate 3"),
        ("rich-chain", "gpu_oom", "RuntimeError: CUDA error: CUDA out of memory. Tried"),
        ("rich", "exit", "ValueError: num_heads must divide hidden_size"),
        ("spawn", "exit", "ValueError: num_heads must divide hidden_size"),
    ],
)
def test_launcher_does_not_hide_the_cause(name: str, reason: str, shown: str) -> None:
    failure = classify(1, ExitDetails((RECORDED / f"failed-{name}.txt").read_text()))
    assert failure.reason == reason
    assert failure.detail.startswith(f"exit code 1: {shown}")


def test_process_of_a_launcher_that_the_kernel_killed_is_oom() -> None:
    log = (RECORDED / "failed-torchrun-kill.txt").read_text()
    failure = classify(1, ExitDetails(log, oom_kills=1))
    assert failure.reason == "oom"
    assert failure.detail == "exit code 1: the box was out of memory: rank 1 was ended by SIGKILL"


# --- kernel messages ----------------------------------------------------------------------------------

XID_79 = "[ 8123.41] NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
XID_48 = "[ 8123.41] NVRM: Xid (PCI:0000:00:1e): 48, pid=4242, name=python, DBE (double bit error) ECC Error"
XID_31 = (
    "[ 8123.41] NVRM: Xid (PCI:0000:00:1e): 31, pid=4242, name=python, Ch 00000008, intr 00000000. MMU Fault: ENGINE"
    " GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f0c_4a000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
)
KILLED = (
    "[ 8123.41] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/user.slice,task=python,pid=4242,uid=1000\n"
    "[ 8123.42] Out of memory: Killed process 4242 (python) total-vm:81234567kB, anon-rss:15432100kB, file-rss:0kB"
)


@pytest.mark.parametrize(
    ("exit_code", "kernel", "kills", "log", "reason"),
    [
        (1, XID_79, 0, traceback("RuntimeError: CUDA error: unknown error"), "gpu_lost"),
        (1, XID_48, 0, traceback("RuntimeError: CUDA error: an illegal memory access was encountered"), "gpu_lost"),
        (-signal.SIGABRT, f"{XID_31}\n{XID_79}", 0, "", "gpu_lost"),
        (1, XID_31, 0, traceback("RuntimeError: CUDA error: an illegal memory access was encountered"), "exit"),
        (-signal.SIGSEGV, XID_31, 0, "", "signal"),  # an error of the program; the GPU works
        (-signal.SIGKILL, KILLED, 1, "", "oom"),
        (137, KILLED, 1, "Killed\n", "oom"),  # reported by a shell as 128 + signal
        (-signal.SIGKILL, "", 0, "", "signal"),  # killed by a user, not by the kernel
        (-signal.SIGTERM, KILLED, 1, "", "signal"),  # the kernel killed another process
        (1, KILLED, 1, traceback(*LOADER_KILLED), "oom"),
        (1, "", 0, traceback(*LOADER_KILLED), "exit"),
        (None, "", 0, "", "lost"),
        (None, XID_79, 0, "", "gpu_lost"),
    ],
)
def test_kernel_messages_decide_the_reason(
    exit_code: int | None, kernel: str, kills: int, log: str, reason: str
) -> None:
    assert classify(exit_code, ExitDetails(log=log, kernel=kernel, oom_kills=kills)).reason == reason


def test_detail_of_kernel_kills() -> None:
    assert classify(-9, ExitDetails(oom_kills=1)).detail == "ended by SIGKILL: the box was out of memory"
    assert classify(1, ExitDetails(kernel=XID_79)).detail == "exit code 1: the NVIDIA driver reports Xid 79"
    assert classify(None, ExitDetails()).detail == "its end was not observed"


# --- the reason that a worker records -------------------------------------------------------------------


def test_reason_recorded_by_the_worker_comes_first() -> None:
    left = ExitDetails(traceback(CUDA_OOM), FailureRecord(1, "non_finite", "loss is nan"), XID_79, 1, step=7)
    said = Failure("non_finite", "exit code 1: loss is nan", 1, "loss is nan", 7)
    assert classify(1, left) == said


def test_error_in_a_loader_process_uses_its_own_traceback() -> None:
    caught = (
        "RuntimeError: Caught MemoryError in DataLoader worker process 0.\nOriginal " + traceback("MemoryError")[18:]
    )
    assert classify(1, ExitDetails(traceback(caught))).exception == "MemoryError"


@pytest.mark.parametrize("reason", ["", "Two Words", "x" * 33, "non-finite", "9lives"])
def test_invalid_reason_is_ignored(reason: str) -> None:
    assert classify(1, ExitDetails(traceback(CUDA_OOM), FailureRecord(1, reason, "x"))).reason == "gpu_oom"


texts = st.text(max_size=40) | st.sampled_from(
    [traceback("ValueError: x"), "Traceback (most recent call last):", XID_79]
)


@given(st.none() | st.integers(-70, 255), texts, texts, st.integers(0, 2))
def test_any_output_is_classified(exit_code: int | None, log: str, kernel: str, kills: int) -> None:
    failure = classify(exit_code, ExitDetails(log, None, kernel, kills))
    assert failure.reason and failure.detail


# --- descriptions of exits ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "words", "number"),
    [
        (0, "exit code 0", None),
        (1, "exit code 1", None),
        (128, "exit code 128", None),
        (143, "exit code 143", 15),
        (255, "exit code 255", None),
        (-9, "ended by SIGKILL", 9),
        (-11, "ended by SIGSEGV", 11),
        (-15, "ended by SIGTERM", 15),
        (-99, "ended by signal 99", None),
    ],
)
def test_describe_exit(exit_code: int, words: str, number: int | None) -> None:
    assert describe_exit(exit_code) == words
    assert signal_of(exit_code) == number


# --- real programs that fail ----------------------------------------------------------------------------


def died(code: str, before: Callable[[], None] | None = None) -> Failure:
    argv = [sys.executable, "-S", "-c", dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=before, timeout=60)
    assert done.returncode != 0
    return classify(done.returncode, ExitDetails(done.stdout + done.stderr))


def test_program_without_memory_is_oom() -> None:
    failure = died("bytes(1 << 31)", lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)))
    assert (failure.reason, failure.exception) == ("oom", "MemoryError")


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", signal.SIGSEGV),
        ("import ctypes; ctypes.string_at(0)", signal.SIGSEGV),
        ("import os; os.abort()", signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 9)", signal.SIGKILL),
    ],
    ids=["faulthandler", "null pointer", "abort", "kill"],
)
def test_program_ended_by_a_signal_is_signal(code: str, number: int) -> None:
    def without_core() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    failure = died(code, without_core)
    assert (failure.reason, failure.exit_code) == ("signal", -number)
    assert failure.detail == f"ended by {signal.Signals(number).name}"


def test_program_on_a_full_disk_is_disk_full(tmp_path: Path) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}'",
        """
        import subprocess
        from remote.supervisor.failures import ExitDetails, classify
        code = "import sys; open(sys.argv[1], 'wb').write(bytes(1 << 20))"
        argv = [sys.executable, "-S", "-c", code, sys.argv[1] + "/epoch-0005.pt"]
        done = subprocess.run(argv, capture_output=True, text=True)
        failure = classify(done.returncode, ExitDetails(done.stderr))
        assert failure.reason == "disk_full", (failure, done.stderr)
        assert failure.detail == "exit code 1: OSError: [Errno 28] No space left on device", failure
        """,
        tmp_path,
    )
