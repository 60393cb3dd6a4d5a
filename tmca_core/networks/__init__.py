"""Networks: image encoders, the text-guided decoder, baselines, parameter roles."""
