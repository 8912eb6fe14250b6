"""drawn-flux's twin, in which every property has one known way from the reference to the picture."""
