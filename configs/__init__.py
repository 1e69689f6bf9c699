"""Settings, as data: each file offers `get_config(arg)`."""
