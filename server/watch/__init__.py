"""What the coordinator sees of a federation: a web page, a health check and figures for Prometheus, from the run's folder alone."""
