"""Whole models: what text makes of their layers' inputs (calibration), and converting them layer by layer."""
