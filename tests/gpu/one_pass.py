"""Every kernel once or twice, plain and by graph, for compute-sanitizer: python -m tests.gpu.one_pass"""

from __future__ import annotations

import sys

from appliance.model import pixels
from tests.gpu.rig import NEVER_NS, filled, frame_in, network, open_gpu, spec_of
from tests.gpu.torch_engine import projection


def main() -> int:
    """Exit 0 when all ran."""
    gpu = open_gpu()
    memory = gpu.memory()
    size, roi, spec = (130, 74), (3, 1, 101, 67), spec_of((24, 16), 3)
    for pixel in pixels.FORMATS:
        pitch = pixels.bytes_per_row(pixel, size[0]) + 16
        (buffer,) = memory.allocate(pixels.frame_bytes(pixel, *size, pitch), 1)
        filled(buffer, pixel, size, pitch, 5)
        net = network(gpu, spec, projection(spec.size, 3, 8))
        for sequence in range(3):
            net.wait(net.submit(frame_in(buffer, pixel, size, pitch, sequence), roi), NEVER_NS)
        net.close()
    memory.close()
    gpu.close()
    sys.stdout.write("passed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
