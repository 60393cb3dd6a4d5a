"""Measurements that anybody can repeat: `tmca bench NAME`."""
