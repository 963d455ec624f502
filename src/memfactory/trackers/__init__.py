"""Trackers: where metrics go. None of them can stop a run."""

from memfactory.trackers.base import RunInfo, State, Tracker
from memfactory.trackers.fanout import Trackers, make_tracker

__all__ = ["RunInfo", "State", "Tracker", "Trackers", "make_tracker"]
