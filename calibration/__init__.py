"""Workstation tools: python -m calibration quantize | validate | threshold | flatfield."""
