"""The commands of SLURM, as far as the kit and submitit use them: arrays run as processes of this machine.

Called under the name of a command. Below the folder ``FAKE_SLURM`` lie scripts/JOB.sh as submitted, calls (a line per
command), states/JOB_INDEX (state, and the process), and ``refuse``, whose text sbatch says when it exists.
``FAKE_NODE`` is the socket of a process that starts jobs at once, as torch is loaded there.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

submission: Any = None  # of submitit, in a node

COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "scontrol", "python")


def install(folder: Path, commands: tuple[str, ...] = COMMANDS) -> Path:
    """Make the commands below `folder`, and return the folder of executables."""
    for name in ("bin", "scripts", "states"):
        (folder / name).mkdir(parents=True)
    for command in commands:
        path = folder / "bin" / command
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).absolute()} {command} "$@"\n')
        path.chmod(0o755)
    return folder / "bin"


def state_of(path: Path) -> tuple[str, int]:
    state, pid = path.read_text().split()
    return state, int(pid)


def note(path: Path, state: str, pid: int = 0) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{state} {pid}")
    os.replace(temporary, path)


def sbatch(folder: Path, file: str) -> None:
    if (folder / "refuse").exists():
        sys.exit((folder / "refuse").read_text())
    job = str(100 + len(list((folder / "scripts").iterdir())))
    text = Path(file).read_text()
    (folder / "scripts" / f"{job}.sh").write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)%(\d+)", text)
    indices = [f"{job}_{number}" for number in range(int(array[1]) + 1)] if array else [job]
    for one in indices:
        note(folder / "states" / one, "PENDING")
    at_once = min(int(array[2]), 2) if array else 1
    with Path(os.devnull).open("r+") as nowhere:
        subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, "run", str(at_once), *indices],
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )
    print(f"Submitted batch job {job}")


def run(folder: Path, at_once: str, *indices: str) -> None:
    """Run tasks, as slurmctld and its nodes do."""
    waiting, running = list(indices), dict[str, subprocess.Popen[bytes]]()
    while waiting or running:
        for one, process in list(running.items()):
            if process.poll() is not None:
                del running[one]
                state, _ = state_of(folder / "states" / one)
                if state == "REQUEUED":
                    waiting.append(one)
                elif state == "RUNNING":
                    note(folder / "states" / one, "FAILED" if process.returncode else "COMPLETED")
        while waiting and len(running) < int(at_once):
            one = waiting.pop(0)
            if state_of(folder / "states" / one)[0] == "CANCELLED":
                continue
            job, _, index = one.partition("_")
            environment = os.environ | {"SLURM_JOB_ID": job, "SLURM_PROCID": "0"}
            if index:
                environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
            note(folder / "states" / one, "RUNNING")
            running[one] = subprocess.Popen(
                ["bash", str(folder / "scripts" / f"{job}.sh")], env=environment, start_new_session=True
            )
            note(folder / "states" / one, "RUNNING", running[one].pid)
        time.sleep(0.02)


def srun(folder: Path, *arguments: str) -> None:
    words = list(arguments)
    job, index = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
    logs = dict[str, str]()
    while words[0].startswith("--"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            path = words.pop(0).replace("%A", job).replace("%a", index).replace("%j", job).replace("%t", "0")
            logs[option] = path
    if "FAKE_NODE" in os.environ:
        on_node(words[-1], *logs.values())
    for path, number in zip(logs.values(), (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.execvp(words[0], words)


def on_node(folder: str, *logs: str) -> None:
    asked = {"environment": dict(os.environ), "folder": folder, "logs": logs}
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(os.environ["FAKE_NODE"])
        there.sendall(json.dumps(asked).encode() + b"\n")
        with suppress(KeyboardInterrupt):
            sys.exit(int(there.recv(16) or b"1"))


def python(folder: Path, *arguments: str) -> None:
    """Be the Python of submitit's local executor."""
    on_node(arguments[-1], *(os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)))


def node(folder: Path) -> None:
    """Start jobs, each as a process of its own."""
    global submission
    from submitit.core import submission

    import mergekit_lite.study.engines.elsewhere  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        place = Path(os.environ["FAKE_NODE"])
        server.bind(str(place.with_name("starting")))
        server.listen(64)
        place.with_name("starting").rename(place)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                serve(connection)
            connection.close()


def serve(connection: socket.socket) -> None:
    """Run one job, as long as who asked for it lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(connection.makefile().readline())
    job = os.fork()
    if job == 0:
        for path, number in zip(asked["logs"], (1, 2), strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        code = 1
        try:
            submission.process_job(asked["folder"])
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code & 255)
    while True:
        ended, status = os.waitpid(job, os.WNOHANG)
        if ended:
            connection.sendall(str(os.waitstatus_to_exitcode(status) & 255).encode())
            os._exit(0)
        if select.select([connection], [], [], 0.02)[0]:  # who asked was killed
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)


def listed(folder: Path) -> dict[str, str]:
    return {path.name: state_of(path)[0] for path in (folder / "states").iterdir() if not path.name.startswith(".")}


def sacct(folder: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for job, state in listed(folder).items():
        if job.partition("_")[0] in arguments:
            print(f"{job}|{state}{' by 1000' if state == 'CANCELLED' else ''}|node1")


def squeue(folder: Path, *arguments: str) -> None:
    for job, state in listed(folder).items():
        if state in ("PENDING", "RUNNING"):
            print(f"{job}|{state}|node1")


def scancel(folder: Path, *jobs: str) -> None:
    for path in (folder / "states").iterdir():
        if path.name.partition("_")[0] in jobs or path.name in jobs:
            state, pid = state_of(path)
            if state in ("PENDING", "RUNNING"):
                note(path, "CANCELLED", pid)
                if pid:
                    with suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)


def scontrol(folder: Path, what: str, job: str) -> None:
    assert what == "requeue"
    note(folder / "states" / job, "REQUEUED")


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    place = Path(os.environ["FAKE_SLURM"])
    with (place / "calls").open("a") as stream:
        stream.write(" ".join([command, *given]) + "\n")
    globals()[command](place, *given)
