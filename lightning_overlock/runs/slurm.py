"""What a job tells its SLURM cluster."""

import os
import subprocess


def requeue_job() -> None:
    """Put this SLURM job into the queue again; it continues then by itself."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:  # it is not there, or refuses
        print(f"This job is not queued again: {error}.")
