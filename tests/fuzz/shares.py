"""Number of cases of each fuzz test: its share of FUZZ, which is 300 by default and the same cases each time.

`make fuzz` asks for more cases, and for other ones each time.
"""

import math
import os

from hypothesis import HealthCheck, settings

TOTAL = int(os.environ.get("FUZZ", "300"))
SHARES = {
    "completions": 0.42, "rows": 0.3, "checkpoints": 0.14, "texts": 0.12, "configurations": 0.02,
    # as many again, over the other files that come from elsewhere
    "shards": 0.15, "ledgers": 0.15, "exported": 0.3, "pending": 0.1, "schemas": 0.2, "yaml": 0.1,
}  # fmt: skip


def cases(part: str, of: int = 1) -> settings:
    """Settings of one of `of` tests that divide a part's share."""
    return settings(
        max_examples=max(2, math.ceil(TOTAL * SHARES[part] / of)),
        deadline=None,
        database=None,
        derandomize="FUZZ" not in os.environ,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
