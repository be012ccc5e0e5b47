"""One rank of a run: trains, writes every step's loss, and ends itself in the middle if told to.

``python ranks_program.py JOB.json``, alone or under torchrun.
"""

import json
import os
import signal
import sys
from pathlib import Path

from bharateo.chips.store import Dataset
from bharateo.config import parse_config
from bharateo.errors import BharatEOError, Stopped
from bharateo.training.loop import Trainer, pretrain


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    rank = int(os.environ.get("RANK", 0))
    losses, finish = [], Trainer.finish

    def finished(self, launched):
        record = finish(self, launched)
        losses.append((record.step + 1, record.loss))
        return record

    def progress(step, num_steps, note):
        if rank == 0:
            kept = dict(each for each in losses if each[0] <= step)
            Path(job["losses"]).write_text(json.dumps([*kept.items()]))
        if step == job.get("end_after") and rank == job.get("ending_rank", 0):
            os.kill(os.getpid(), getattr(signal, job["by"]))

    Trainer.finish = finished
    try:
        config = parse_config(job["config"])
        pretrain(Dataset.open(job["dataset"]), config, Path(job["run"]), progress)
    except Stopped as stopped:
        print(f"rank {rank} {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except BharatEOError as error:
        print(f"rank {rank} {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
