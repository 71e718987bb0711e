"""A training from the command line that is killed, and resumed, ends bitwise where one that runs through ends."""

import subprocess
import sys
from pathlib import Path

from on_device import TRAINER

SCRIPT = Path(__file__).parents[1] / "slow" / "kill_and_resume.py"


def test_killed_and_resumed() -> None:
    command = [sys.executable, str(SCRIPT), "--trials=1", f"--accelerator={TRAINER['accelerator']}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "survived 1 of 1" in done.stdout
