"""Racial-bias audit of face-forgery detectors."""
