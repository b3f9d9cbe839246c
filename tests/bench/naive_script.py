"""Parts judged with cv2 and onnxruntime, as one writes it in an afternoon: what the bench holds the product against.

    python -m tests.bench.naive_script float.onnx SIZE CHANNELS PICTURE...

Not crippled: one session kept, one thread that does not spin, the picture made small before it is turned to float.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
import onnxruntime as ort

MEAN = {1: [0.5], 3: [0.485, 0.456, 0.406]}
STD = {1: [0.25], 3: [0.229, 0.224, 0.225]}


class NaiveScript:
    """The whole of it: load once, then a verdict a frame (uint8, (h, w) or (h, w, 3) blue first)."""

    def __init__(self, model: str, size: tuple[int, int], channels: int, fail_at: float = 0.5) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.size, self.channels, self.fail_at = size, channels, fail_at
        self.mean, self.std = np.float32(MEAN[channels]), np.float32(STD[channels])

    def preprocess(self, frame: np.ndarray) -> np.ndarray:
        image = cv2.resize(frame, self.size, interpolation=cv2.INTER_LINEAR)
        if self.channels == 1:
            image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        else:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
        image = image.reshape(*image.shape[:2], self.channels).astype(np.float32) / 255
        image = (image - self.mean) / self.std
        return np.ascontiguousarray(image.transpose(2, 0, 1)[None])

    def verdict(self, frame: np.ndarray) -> tuple[str, int, float]:
        (logits,) = self.session.run(None, {self.input: self.preprocess(frame)})
        powers = np.exp(logits[0] - logits[0].max())
        scores = powers / powers.sum()
        worst = 1 + int(scores[1:].argmax())  # class 0 is the good one
        return ("fail" if scores[worst] >= self.fail_at else "pass"), worst, float(scores[worst])


if __name__ == "__main__":
    cv2.setNumThreads(1)
    script = NaiveScript(sys.argv[1], (int(sys.argv[2]), int(sys.argv[2])), int(sys.argv[3]))
    for path in sys.argv[4:]:
        print(path, *script.verdict(cv2.imread(path)))
