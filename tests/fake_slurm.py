"""The commands of SLURM, as far as the kit and submitit use them: arrays run as processes of this machine.

Called under the name of a command. Below the folder ``FAKE_SLURM`` lie scripts/JOB.sh as submitted, calls (a line per
command), states/JOB_INDEX (state, and the process), and ``refuse``, whose text sbatch says when it exists.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "scontrol")


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
    while words[0].startswith("--"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            path = words.pop(0).replace("%A", job).replace("%a", index).replace("%j", job).replace("%t", "0")
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 1 if option == "--output" else 2)
    os.execvp(words[0], words)


def listed(folder: Path) -> dict[str, str]:
    return {path.name: state_of(path)[0] for path in (folder / "states").iterdir() if not path.name.startswith(".")}


def sacct(folder: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for job, state in listed(folder).items():
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
