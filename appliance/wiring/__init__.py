"""From configuration to concrete objects: the only rooms that know devices/ by name.

station: a station file's three processes. machine: what judges here, GPU or CPU. models: a bundle on the CPU. engines and
engine_verbs: TensorRT's engines on this module. jetson_inference, selftest: what their names say."""
