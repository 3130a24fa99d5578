"""What a continual run is judged by: the matrix R of PSNR (and SSIM), its final average, forgetting, plasticity, forward transfer."""

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tenfold.config import from_dict
from tenfold.errors import UserError


@dataclass(frozen=True)
class Score:
    """Means over the pictures of one test set.

    Attributes:
        psnr: dB, of the restored pictures.
        ssim: of the restored pictures.
        input_psnr: dB, of the degraded pictures: what doing nothing gets.
        input_ssim: of the degraded pictures.
        pictures: how many.
    """

    psnr: float
    ssim: float
    input_psnr: float
    input_ssim: float
    pictures: int

    @property
    def gain(self) -> float:
        """dB gained over the degraded pictures."""
        return self.psnr - self.input_psnr


@dataclass
class ContinualReport:
    """Scores on every task after learning each task.

    Attributes:
        protocol: of the metrics; reports of different protocols must not be compared.
        tasks: in the order learnt.
        rows: after each task, the score on every task that has a test set, learnt or not yet.
    """

    protocol: str = "official"
    tasks: list[str] = field(default_factory=list)
    rows: list[dict[str, Score]] = field(default_factory=list)

    def value(self, after: int, task: int, metric: str = "psnr") -> float:
        """R[after][task]; NaN where it was not measured."""
        score = self.rows[after].get(self.tasks[task])
        return math.nan if score is None else getattr(score, metric)

    def matrix(self, metric: str = "psnr") -> torch.Tensor:
        """R, float64, (tasks, tasks)."""
        count = len(self.tasks)
        values = [[self.value(after, task, metric) for task in range(count)] for after in range(count)]
        return torch.tensor(values, dtype=torch.float64)

    def average(self, metric: str = "psnr") -> float:
        """Mean over the tasks of R after the last: the mean of task means, not of pictures."""
        return self.matrix(metric)[-1].mean().item()

    def forgetting(self, metric: str = "psnr") -> float:
        """Mean over all tasks but the last of (best before the last task - value after it)."""
        # Here, because torchmetrics takes seconds to load and restoring pictures needs none of it.
        from tenfold.metrics import forgetting

        return forgetting(self.matrix(metric)).item()

    def losses(self) -> dict[str, float]:
        """For each task: dB between the best it ever had and what is left after the last."""
        matrix = self.matrix()
        return {name: (matrix[task:, task].max() - matrix[-1, task]).item() for task, name in enumerate(self.tasks)}

    def plasticity(self) -> float:
        """Mean over the tasks of R right after learning each, in dB."""
        return self.matrix().diagonal().mean().item()

    def forward_transfer(self) -> float:
        """Mean over all tasks but the first of R just before learning it, above the degraded pictures, in dB; NaN with one task."""
        gains = [
            self.rows[task - 1][name].gain
            for task, name in enumerate(self.tasks)
            if task > 0 and name in self.rows[task - 1]
        ]
        return sum(gains) / len(gains) if gains else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "protocol": self.protocol,
            "tasks": self.tasks,
            "rows": [{name: asdict(score) for name, score in row.items()} for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "report") -> "ContinualReport":
        """The inverse of `to_dict`.

        Args:
            values: as read from JSON.
            source: what to call their origin in an error.

        Raises:
            UserError: of other types, with other keys, or without a row for each task.
        """
        if missing := sorted({"protocol", "tasks", "rows"} - values.keys()):
            raise UserError(f"{source}: lacks {', '.join(missing)}")
        report = from_dict(values, cls, source)
        if len(report.rows) != len(report.tasks):
            raise UserError(f"{source}: has {len(report.rows)} rows of scores for {len(report.tasks)} tasks")
        return report

    def to_markdown(self) -> str:
        """A table with a row for each task learnt, a column for each task judged."""
        names = list(dict.fromkeys([*self.tasks, *(name for row in self.rows for name in row)]))
        head = f"PSNR in dB / SSIM, protocol {self.protocol}"
        lines = [f"| {head} | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
        if self.rows:
            inputs = {name: score for row in self.rows for name, score in row.items()}
            cells = [f"{inputs[n].input_psnr:.2f} / {inputs[n].input_ssim:.4f}" if n in inputs else "-" for n in names]
            lines.append(f"| degraded pictures | {' | '.join(cells)} |")
        for name, row in zip(self.tasks, self.rows, strict=True):
            cells = [f"{row[n].psnr:.2f} / {row[n].ssim:.4f}" if n in row else "-" for n in names]
            lines.append(f"| after {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_csv(self) -> str:
        """One line for each cell of the matrix."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["after", "task", "protocol", "psnr", "ssim", "input_psnr", "input_ssim", "pictures"])
        for after, row in zip(self.tasks, self.rows, strict=True):
            writer.writerows([after, name, self.protocol, *asdict(score).values()] for name, score in row.items())
        return stream.getvalue()
