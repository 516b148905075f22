"""Global arrays over the devices of a mesh."""
