"""A clock that moves only when told to, so that timings are known beforehand."""

from quantlib.measure.clocks import Clock


class FakeTime:
    """now: seconds; synchronised: how often the clock was asked to wait."""

    def __init__(self):
        self.now, self.synchronised = 0.0, 0

    def pass_(self, seconds):
        self.now += seconds

    def clock(self):
        return Clock(lambda: self.now, lambda a, b: b - a, self._synchronise)

    def _synchronise(self):
        self.synchronised += 1
