"""The configuration: one YAML file, read under limits, checked whole, refused in words. See schema.py."""

from appliance.config.addresses import Address
from appliance.config.load import ConfigError, Problem, find_bundle, load
from appliance.config.schema import Station

__all__ = ["Address", "ConfigError", "Problem", "Station", "find_bundle", "load"]
