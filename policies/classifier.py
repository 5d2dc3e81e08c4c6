"""A classification head on a backbone: the form of CodeT5-Authorship."""

import json
from pathlib import Path

from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.encoder import Pooling, TextEncoder
from policies.locate import locate
from policies.params import PolicyParams
from support.errors import ConfigError
from support.files import parse_json

HEAD, LABELS = "head.safetensors", "labels.json"


class Classifier(TextEncoder):
    """A backbone, and a head: linear to `head_width`, GELU, dropout, linear to one logit per class.

    Args:
        params: a model to start from, or a folder that `save` wrote, whose head and classes are loaded too.
        labels: names of the classes; those of the folder if None.
        pooling: as in `TextEncoder`. head_width: width of the head's inner layer.
        head_dropout: probability with which the head drops a number of its inner layer while it learns.

    Raises:
        ConfigError: a folder with other classes or another width of the head, or no names of classes.
    """

    def __init__(
        self,
        params: PolicyParams,
        labels: list[str] | None,
        pooling: Pooling = "first",
        head_width: int = 768,
        head_dropout: float = 0.2,
    ) -> None:
        super().__init__(params, pooling)
        folder = Path(locate(params.model))
        saved = _saved_labels(folder / LABELS)
        names = saved if labels is None else labels
        if names is None:
            raise ConfigError(
                f"{params.model} is not a trained classifier and the data name no classes. Use a data module with "
                "`labels`, such as datamodules.AuthorshipPrograms, or set model.labels."
            )
        if labels is not None and saved is not None and labels != saved:
            raise ConfigError(
                f"the classifier {params.model} has the classes {saved}, and the data have {labels}. Start from the "
                "model that it was trained from, or use data with its classes."
            )
        self.labels: list[str] = names
        self.head = nn.Sequential(
            nn.Linear(self.width, head_width),
            nn.GELU(),
            nn.Dropout(head_dropout),
            nn.Linear(head_width, len(self.labels)),
        )
        if (folder / HEAD).is_file() and saved is not None:
            try:
                self.head.load_state_dict(load_file(folder / HEAD))
            except (SafetensorError, RuntimeError) as error:
                raise ConfigError(
                    f"the classifier's head {folder / HEAD} cannot be loaded: {error}. Set model.head_width as in its "
                    "run, or copy the folder again."
                ) from error

    def forward(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows classes"]:
        """Logits of sequences padded on the right."""
        logits: Tensor = self.head(super().forward(ids, mask))
        return logits

    def save(self, folder: str | Path) -> None:
        """Write a folder that `Classifier` loads, and whose backbone `transformers.AutoModel` loads."""
        super().save(folder)
        save_file(self.head.state_dict(), Path(folder) / HEAD)
        (Path(folder) / LABELS).write_text(json.dumps(self.labels))


def _saved_labels(file: Path) -> list[str] | None:
    """The names of the classes in a classifier's folder; None for a folder without. Raises ConfigError."""
    if not file.is_file():
        return None
    try:
        labels = parse_json(file.read_text())
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("it is not a list of names")
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{file} does not hold the names of a classifier's classes: {error}; copy the folder again from the run "
            "that trained it."
        ) from None
    return labels
