"""Recurrence: the device code of Elman RNNs and how launches of it are planned; README.md lists the variants."""
