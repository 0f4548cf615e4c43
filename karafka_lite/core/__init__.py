"""The rules about offsets and ownership. Pure: no clock, no I/O, no threads, no logging."""
