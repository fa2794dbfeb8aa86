"""Running a model on calibration data while watching the operations that use its weights."""
