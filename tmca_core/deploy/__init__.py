"""What a federation of hospitals is started from: its description, certificates, keys, start scripts, units and guides."""
