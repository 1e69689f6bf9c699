"""RCG: images -> representations -> images."""
