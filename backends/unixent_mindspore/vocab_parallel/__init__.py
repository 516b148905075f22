"""A loss split over processes."""
