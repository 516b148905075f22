"""Losses whose positions or classes are split over processes."""
