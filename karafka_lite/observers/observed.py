"""All that is known of one run from its events: what was done, what it waits for, and who is told."""

from __future__ import annotations

from karafka_lite.observers.delivery import Deliveries, Observers
from karafka_lite.observers.health import Conditions
from karafka_lite.observers.metrics import Counts
from karafka_lite.observers.progress import Progress
from karafka_lite.observers.report import report_delivery


class Observed(Deliveries):
    """Emits to the log and to ``observers``, and keeps what ``App.health``, ``App.stats`` and a drain ask for."""

    def __init__(self, observers: Observers) -> None:
        self.progress, self.conditions, self.counts = Progress(), Conditions(), Counts()
        immediate = (self.progress.observe, self.conditions.observe, self.counts.observe)
        super().__init__(immediate, report_delivery(self.progress), observers)
