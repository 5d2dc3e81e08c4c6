"""Single responses that are labelled desirable or not, in the formats of PKU-SafeRLHF, Anthropic HH and TRL."""

from typing import Literal

from datamodules.preferences import PairSource, PreferencePairs
from datamodules.rows import Row, check_rows, read_rows
from datamodules.trl import labelled
from support.errors import ConfigError


class LabelledResponses(PreferencePairs):
    """Rows with `prompt`, `response` and `desirable`, for objectives on unpaired data (KTO).

    Pairs of any format become two rows each. With the format trl, rows may also have TRL's unpaired columns `prompt`,
    `completion` and `label`.

    Args:
        pairs: source of the pairs or responses.
        labels: better: the preferred response of a pair is desirable, the other one is not; safe: the safety labels of
            PKU-SafeRLHF decide, response by response.
        batch_size: responses per step, over all processes.
        val_share: fraction of the prompts that are held out.
        seed: seed of their order; the run's seed if None.
    """

    def __init__(
        self,
        pairs: PairSource,
        labels: Literal["better", "safe"] = "better",
        batch_size: int = 16,
        val_share: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__(pairs, batch_size, val_share, seed)
        self.labels = labels

    def read(self) -> list[Row]:
        source = self.pairs
        if source.format == "trl" and self.labels == "better":
            raw = read_rows(source.source, source.split, source.columns, source.subset, ("label",))[: source.limit]
            if raw and "label" in raw[0]:
                check_rows(raw, source.source, ("completion", "label"))
                return check_rows([labelled(row) for row in raw], source.source, ("prompt", "response"))
        return [one for pair in source.rows() for one in self._both(pair)]

    def _both(self, pair: Row) -> list[Row]:
        """Both responses of a pair, as rows of their own."""
        rows = []
        for side in (0, 1):
            if self.labels == "better":
                desirable = pair["better"] == side
            elif (unsafe := pair.get(f"unsafe_{side}")) is not None:
                desirable = not unsafe
            else:
                raise ConfigError(
                    f"data.labels is safe, but row {pair['id']!r} of {self.pairs.source} has no safety labels; use "
                    "data in PKU-SafeRLHF's format, or set data.labels to better."
                )
            prompt, response = pair["prompt"], pair[f"response_{side}"]
            ended = {"ended": pair[f"ended_{side}"]} if f"ended_{side}" in pair else {}
            row_id = f"{pair['id']}/{side}"
            rows.append({"id": row_id, "prompt": prompt, "response": response, "desirable": desirable, **ended})
        return rows
