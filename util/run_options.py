"""What a command does, and with which run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from util.option import PLACE, VALUE, option


@dataclass(frozen=True)
class RunOptions:
    """What to do and where."""

    system: str = option("cld", "published system, or package.module:NAME of a System of your own")
    mode: str = option(
        "train", "train a model, continue a training run, evaluate a snapshot, draw samples from one, or train a "
        "dequantizer for one (scoreflow)",
        choices=("train", "continue", "eval", "sample", "train_deq"), effect=PLACE, once=True,
    )  # fmt: skip
    root: str = option(".", "folder that relative paths start from", effect=PLACE, path=True)
    workdir: str = option("", "folder of the run: configuration, snapshots, logs, samples", effect=PLACE, path=True)
    overwrite: bool = option(False, "with --mode train: start again where workdir holds a run", effect=PLACE, once=True)
    checkpoint: str = option(
        "", "with --mode continue: file in workdir/checkpoints to start from; default the newest intact one",
        effect=PLACE, path=True, once=True,
    )  # fmt: skip
    follow: str = option(
        "", "with --mode eval: evaluate each kept snapshot (--save_freq) of a run that trains elsewhere, into "
        "eval_folder/step_<n>, until it has finished: in order, or the newest first; --follow alone is in order",
        choices=("", "order", "newest"), effect=PLACE, once=True, alone="order",
    )  # fmt: skip
    cont_nbr: int = option(
        0, "number of this continuation: N > 0 continues with fresh noise, 0 exactly as if never stopped",
        minimum=0, effect=PLACE,
    )  # fmt: skip
    seed: int = option(0, "seed of everything random in a run, and of the split of its data", minimum=0)
    eval_seed: int = option(0, "seed of evaluation noise", minimum=0, effect=VALUE)
    published_behaviour: bool = option(
        False, "reproduce the public code where ours corrects it (docs/differences.md)", evaluated_anew=True
    )

    @property
    def trains(self) -> bool:
        """Whether the mode changes a model, rather than look at one."""
        return self.mode in ("train", "continue", "train_deq")

    @property
    def starts_again(self) -> bool:
        """Whether what the folder holds of a run before does not count."""
        return self.overwrite and self.mode in ("train", "train_deq")

    @property
    def model_folder(self) -> Path:
        """The folder of the model, which ``--workdir`` names."""
        return Path(self.root) / self.workdir

    @property
    def dequantizer_folder(self) -> Path:
        """The folder of the model's dequantizer, which is a run of its own."""
        return self.model_folder / "dequantizer"

    @property
    def folder(self) -> Path:
        """The folder of this run."""
        return self.dequantizer_folder if self.mode == "train_deq" else self.model_folder

    def path(self, name: str) -> Path:
        """A file or folder that an option names, from ``root`` on where it is relative."""
        return Path(self.root) / name
