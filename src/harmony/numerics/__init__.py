"""Small dense problems, one per sample, solved for the whole batch at once on its device.

Elementwise operations and fixed numbers of iterations only: nothing waits for the device, everything compiles.
"""
