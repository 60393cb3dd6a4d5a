"""Secure aggregation (Bonawitz et al. 2017, the variant for an active server): the server learns a sum of updates and no single one."""
