"""Layer-wise optimal brain surgeon: Hessians of layer inputs, costs of units, least squares for what stays."""

from pruning.second_order.calibration import Calibration, Statistics, collect
from pruning.second_order.criteria import OBS, Calibrated, CalibratedFisher, CalibratedSnip, Wanda

__all__ = ["OBS", "Calibrated", "CalibratedFisher", "CalibratedSnip", "Calibration", "Statistics", "Wanda", "collect"]
