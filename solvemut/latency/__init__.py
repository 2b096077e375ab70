"""Latency: how long the layers of a model take by their sizes, measured or computed, as a cost in milliseconds."""

from .analytic import Roofline, roofline
from .clock import Clock
from .measure import measure_latency
from .samples import Call
from .table import LatencyTable

__all__ = ["Call", "Clock", "LatencyTable", "Roofline", "measure_latency", "roofline"]
