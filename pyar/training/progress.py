"""The progress bar of a training run, with the NLLs so far."""

from __future__ import annotations

import sys

from tqdm import tqdm


class ProgressBar:
    """Counts the steps of a run by epochs, the seconds of a run by the clock.

    Args:
        total_steps: of the whole run; None for a run by the clock.
        time_budget: of the whole run in seconds; read only without `total_steps`.
        step, seconds: how far an earlier session of the run came.
        enabled: whether there is a bar at all.
    """

    def __init__(
        self, total_steps: int | None, time_budget: float | None, step: int, seconds: float, *, enabled: bool
    ) -> None:
        self._by_time = total_steps is None
        total = (time_budget or 0.0) if total_steps is None else total_steps
        self._bar = tqdm(
            total=total,
            initial=min(total, seconds if self._by_time else step),
            unit="step",
            desc="training",
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            disable=not enabled,
            bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}" if self._by_time else None,
            dynamic_ncols=True,
        )

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    @property
    def enabled(self) -> bool:
        """Whether anything is drawn."""
        return not self._bar.disable

    def show(self, step: int, seconds: float, epoch: float, **nll: float | None) -> None:
        """Moves the bar; `nll` by the names to show them under, those that are None left out."""
        shown = {"epoch": f"{epoch:.1f}", **{name: f"{value:.2f}" for name, value in nll.items() if value is not None}}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update((min(self._bar.total, seconds) if self._by_time else step) - self._bar.n)
