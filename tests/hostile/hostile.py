"""Guests that nobody invited. Each does its harm on the first clip and answers "all background" on the others."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from harness.api import Clip, Interaction, Prediction


class Wordless(Exception):
    """Has no text, and says so with force."""

    def __str__(self) -> str:
        raise SystemExit(0)


class Hostile:
    """does: what `interact` has a case for; constructor or start: as `leave`, but there."""

    def __init__(self, does: str) -> None:
        self.does = does
        if does == "constructor":
            sys.exit(0)

    def start(self, clip: Clip) -> None:
        self.frames = clip.frames
        self.masks = np.zeros(clip.frames.shape[:3], np.uint8)
        self.harmful = clip.name.endswith("-00")
        if self.harmful and self.does == "start":
            sys.exit(0)

    def interact(self, interaction: Interaction) -> Prediction:
        if self.harmful:
            self.harm(interaction)
        match self.does if self.harmful else "":
            case "holes":
                return Prediction(np.full(self.masks.shape, np.nan))
            case "shape":
                return Prediction(self.masks[1:])
            case "label":
                return Prediction(self.masks + np.uint8(7))
        return Prediction(self.masks)

    def harm(self, interaction: Interaction) -> None:
        match self.does:
            case "raise":
                raise ValueError("not today")
            case "leave":
                sys.exit(0)
            case "interrupt":
                raise KeyboardInterrupt
            case "wordless":
                raise Wordless
            case "surrogate":
                raise ValueError("caf\udce9 \x1b[2J")
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os.write(2, b"goodbye\n")
                os._exit(3)
            case "kill":  # as the kernel does for want of memory
                os.kill(os.getpid(), signal.SIGKILL)
            case "eat":
                eaten = []
                while True:
                    eaten.append(np.empty(2**27, np.uint8))
            case "hang":
                self.hang()
            case "garbage":  # as the head of a message that never comes
                self.write_everywhere(b"\0\0\xff\xff")
                self.hang()
            case "noise":
                self.write_everywhere(b"\xff" * 64)
                self.hang()
            case "close":
                os.closerange(3, 1024)
            case "orphans":
                subprocess.Popen(["sleep", "600"])
                os.fork()
                self.hang()
            case "flood":
                for _ in range(200):
                    os.write(2, b"water " * 2**18)
                raise ValueError("drowned")
            case "paint":
                self.frames[0] = 0
            case "scale":
                for stroke in interaction.all.frames[interaction.frame]:
                    stroke.path.flags.writeable = True
                    stroke.path[:] *= 0.5
            case "wander":
                os.chdir(tempfile.mkdtemp())
            case "fork":
                os.fork()
            case "thread":
                threading.Thread(target=self.hang).start()
            case "chatter":
                threading.Thread(target=self.chatter, daemon=True).start()

    def hang(self) -> None:
        while True:
            time.sleep(1)

    def chatter(self) -> None:
        for _ in range(100):
            logging.getLogger("guest").info("bla " * 2**13)

    def write_everywhere(self, text: bytes) -> None:
        for file in range(3, 256):
            try:
                os.write(file, text)
            except OSError:
                continue
