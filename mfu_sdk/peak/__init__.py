"""What a device can do: FLOP/s per dtype and bytes/s, measured or by theory."""
