"""Checkpoints of a run: ``<run>/checkpoints/step-000020/``, complete or absent, never half.

Weights and optimizer state go through torch.distributed.checkpoint, which stores sharded and replicated tensors alike
and can load them into another number of processes. What is not a tensor goes into ``progress.json``. A checkpoint is
written under a temporary name and renamed when every process is done, so a crash or a full disk leaves the last good one.
"""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from irlops.errors import CheckpointError, StorageError
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer

PROGRESS_FILE = "progress.json"
PIN_FILE = "healthy"
_OPTIONS = StateDictOptions(ignore_frozen_params=True)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_dir: the run's folder; made when missing.
        keep: how many checkpoints stay.
        identity: what a checkpoint must agree on to be resumed (preset, base weights ...).
    """

    def __init__(self, run_dir: Path, *, keep: int, runtime: Runtime, identity: Mapping[str, str]) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep
        self._runtime = runtime
        self._identity = dict(identity)

    def save(
        self, step: int, trainers: Mapping[str, Trainer], progress: Mapping[str, Any], *, pin: bool = False
    ) -> None:
        """Write one checkpoint; older ones beyond ``keep`` go, but never the newest pinned one.

        Args:
            step: rounds or optimizer steps done.
            progress: JSON-able, identical on every process.
            pin: this is a state to come back to; it takes the pin from the one before.
        Raises:
            StorageError: the disk is full or went away; the last complete checkpoint is untouched.
        """
        target = self._path(step)
        temporary = target.with_suffix(".writing")
        error = self._attempt(lambda: self._write(temporary, step, trainers, progress))
        if any(self._runtime.gather(error is not None)):
            if self._runtime.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            self._runtime.barrier()
            raise StorageError(
                f"Could not write checkpoint {target}: {error or 'another process failed to write its part'}. "
                f"Training can go on from {self.latest_step() or 'the start'}; free space on that volume and start the job again."
            ) from error
        if self._runtime.is_main:
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            if pin:
                (self._folder / PIN_FILE).write_text(str(step))
            self._remove_old()
        self._runtime.barrier()

    def _attempt(self, write: Any) -> OSError | None:
        try:
            write()
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            cause = _os_error_in(error)
            if cause is None:
                raise
            return cause
        return None

    def _write(self, folder: Path, step: int, trainers: Mapping[str, Trainer], progress: Mapping[str, Any]) -> None:
        if self._runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            counts = {name: trainer.num_steps_done for name, trainer in trainers.items()}
            document = {"step": step, "identity": self._identity, "optimizer_steps": counts, "progress": dict(progress)}
            (folder / PROGRESS_FILE).write_text(json.dumps(document))
        self._runtime.barrier()
        with _alone_on_purpose():
            save(_tensors(trainers), checkpoint_id=folder, no_dist=self._runtime.world_size == 1)

    def load_latest(self, trainers: Mapping[str, Trainer]) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest complete checkpoint into ``trainers``.

        Returns:
            Its step and progress, or None when there is none.
        Raises:
            CheckpointError: it belongs to another model or can't be read.
        """
        step = self.latest_step()
        return None if step is None else (step, self.load(step, trainers))

    def load(self, step: int, trainers: Mapping[str, Trainer]) -> dict[str, Any]:
        """Restore one checkpoint into ``trainers`` and return its progress; errors as ``load_latest``."""
        folder = self._path(step)
        document = self._read_progress(folder)
        state = _tensors(trainers)
        try:
            with _alone_on_purpose():
                load(state, checkpoint_id=folder, no_dist=self._runtime.world_size == 1)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise CheckpointError(
                f"Checkpoint {folder} can't be read: {_first_line(error)}. Remove that folder to resume from the one before."
            ) from error
        for name, trainer in trainers.items():
            set_state_dict(
                trainer.scorer,
                trainer.optimizers,
                model_state_dict=state[name]["model"],
                optim_state_dict=state[name]["optimizer"],
                options=StateDictOptions(ignore_frozen_params=True, strict=False),
            )
            trainer.num_steps_done = document["optimizer_steps"][name]
        return document["progress"]

    def pinned_step(self) -> int | None:
        """The newest state that was pinned, if it is still there."""
        try:
            step = int((self._folder / PIN_FILE).read_text())
        except (OSError, ValueError):
            return None
        return step if step in self._steps() else None

    def latest_step(self) -> int | None:
        return max(self._steps(), default=None)

    def _read_progress(self, folder: Path) -> dict[str, Any]:
        try:
            document = json.loads((folder / PROGRESS_FILE).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"Checkpoint {folder} has no readable {PROGRESS_FILE} ({error}). Remove that folder to resume from the one before."
            ) from error
        differing = {
            k: (document["identity"].get(k), v) for k, v in self._identity.items() if document["identity"].get(k) != v
        }
        if differing:
            told = ", ".join(f"{key}: {old} there, {new} in the job file" for key, (old, new) in differing.items())
            raise CheckpointError(
                f"Checkpoint {folder} belongs to another run ({told}). Give the job another run_name, or remove the folder to start anew."
            )
        return document

    def _steps(self) -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in self._folder.glob("step-[0-9]*") if path.suffix == ""]

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"

    def _remove_old(self) -> None:
        for step in sorted(set(self._steps()) - {self.pinned_step()})[: -self._keep]:
            shutil.rmtree(self._path(step), ignore_errors=True)


def _first_line(error: BaseException) -> str:
    """What went wrong, without the stacks of all processes."""
    for wrapped in getattr(error, "failures", {}).values():
        return _first_line(wrapped[0])
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _os_error_in(error: BaseException | None) -> OSError | None:
    """The operating system's complaint (disk full, quota, volume gone) behind what torch's writers raise instead."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        for wrapped in getattr(error, "failures", {}).values():  # CheckpointException: by process, with its stack
            if found := _os_error_in(wrapped[0]):
                return found
        if "inline_container.cc" in str(error):  # torch's zip writer counts bytes, and less arrived than it wrote
            return OSError(errno.ENOSPC, "No space left on device")
        error = error.__cause__ or error.__context__
    return None


def _tensors(trainers: Mapping[str, Trainer]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, trainer in trainers.items():
        unused = [optimizer for optimizer in trainer.optimizers if not optimizer.state]
        model, optimizer = get_state_dict(trainer.scorer, trainer.optimizers, options=_OPTIONS)
        for untouched in unused:
            _count_from_zero(untouched)
        state[name] = {"model": model, "optimizer": optimizer}
    return state


def _count_from_zero(optimizer: Optimizer) -> None:
    """torch makes the state of an optimizer that has none yet by a step without gradients, and counts it: the bias
    correction of a job stopped before its policy's first update would be one step ahead of an undisturbed one's."""
    for entry in optimizer.state.values():
        if "step" in entry:
            entry["step"].zero_()


@contextmanager
def _alone_on_purpose() -> Iterator[None]:
    """torch warns that one process saves alone; that is what one process is meant to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
