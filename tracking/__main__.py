"""Send to MLflow what a training could not send.

python -m tracking runs/pending/RUN.jsonl
"""

import os
import sys
from pathlib import Path

from tracking.outbox import Outbox

if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # report an unreachable server soon
    for name in sys.argv[1:]:
        if not Outbox.load(Path(name)).send():
            sys.exit(f"error: MLflow still cannot be reached; {name} stays as it is.")
        Path(name).unlink()
        print(f"{name} has been sent.")
