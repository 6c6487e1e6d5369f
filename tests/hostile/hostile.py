"""Guests that nobody invited. Each does its harm on the first clip and answers "all background" on the others."""

import ctypes
import os
import signal
import time

import numpy as np

from harness.api import Clip, Interaction, Prediction


class Hostile:
    """does: raise, segfault, exit, kill (as the kernel does), hang, eat (memory), holes (NaN), shape or label."""

    def __init__(self, does: str) -> None:
        self.does = does

    def start(self, clip: Clip) -> None:
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)
        self.harmful = clip.name.endswith("-00")

    def interact(self, interaction: Interaction) -> Prediction:
        if not self.harmful:
            return Prediction(self.masks)
        match self.does:
            case "raise":
                raise ValueError("not today")
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os.write(2, b"goodbye\n")
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                while True:
                    time.sleep(1)
            case "eat":
                eaten = []
                while True:
                    eaten.append(np.empty(2**27, np.uint8))
            case "holes":
                return Prediction(np.full(self.masks.shape, np.nan))
            case "shape":
                return Prediction(self.masks[1:])
        return Prediction(self.masks + np.uint8(7))
