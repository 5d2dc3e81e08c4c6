"""Send to MLflow the writes that a training could not send.

python -m tracking runs/pending/RUN.jsonl
"""

import os
import sys
from pathlib import Path

from support.errors import ConfigError
from tracking.outbox import Outbox


def main(files: list[str]) -> None:
    """Send these files, and delete each one that has been sent completely."""
    if not files:
        sys.exit("error: no file is given; name the file of a run, e.g. python -m tracking runs/pending/RUN.jsonl")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # report an unreachable server soon
    for name in files:
        try:
            outbox = Outbox.load(Path(name))
        except ConfigError as error:
            sys.exit(f"error: {error}")
        if not outbox.send():
            sys.exit(f"error: MLflow still cannot be reached; {name} is kept. Run the command again later.")
        Path(name).unlink()
        print(f"{name} has been sent.")


if __name__ == "__main__":
    main(sys.argv[1:])
