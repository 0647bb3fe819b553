"""``congrad loop`` that kills itself at a given moment, and trains in no time; tests run it.

The first argument says when: ``MOMENT STEP``, such as ``finish 1/candidates``; ``never`` runs on.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from congrad_cli.loop import items, stage

MOMENTS = ("begin", "item", "results", "finish", "done")
"""Before the stage's folder is there; after its first item; where its results are whole; before
and after it says that it is done."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(moment: str, name: str) -> None:
    """Make the process die there."""
    begin, finish, append = stage.Stage.begin, stage.Stage.finish, items.ItemLog.append
    leave = items.ItemLog.__exit__

    def dying_begin(self, inputs):
        if (moment, name) == ("begin", self.name):
            die()
        begin(self, inputs)

    def dying_finish(self, *what):
        if (moment, name) == ("finish", self.name):
            die()
        finish(self, *what)
        if (moment, name) == ("done", self.name):
            die()

    def dying_append(self, item):
        append(self, item)
        if moment == "item" and self.path.parent.name.endswith(name):
            die()

    def dying_exit(self, *error):
        leave(self, *error)
        if moment == "results" and self.path.parent.name.endswith(name):
            die()

    stage.Stage.begin, stage.Stage.finish = dying_begin, dying_finish
    items.ItemLog.append, items.ItemLog.__exit__ = dying_append, dying_exit


def quick_training(spec, progress) -> Path:
    """Another model each round, that hangs on the pairs: no training is what is tested here."""
    from safetensors.torch import load_file, save_file

    model = spec.output / "model"
    if model.is_dir():
        return model
    temporary = spec.output / "model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(spec.model, temporary)
    weights = load_file(temporary / "model.safetensors")
    scale = 1 + (len(spec.pairs.read_bytes()) % 97) / 500
    weights["model.norm.weight"] = weights["model.norm.weight"] * scale
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    temporary.rename(model)
    return model


def main() -> None:
    """Run ``congrad`` with the arguments that follow the moment's."""
    from congrad_cli.cli import main as congrad
    from congrad_cli.loop import alone, run

    moment, _, name = sys.argv[1].partition(" ")
    run.train = alone.train = quick_training
    at(moment, name)
    sys.argv = ["congrad", *sys.argv[2:]]
    congrad()


if __name__ == "__main__":
    main()
